"""Print the constraints of standard input that do not name a package installed here already."""

import re
import sys
from importlib.metadata import distributions


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# pip itself and its kin are of no account.
installed = {plain(found.metadata["Name"]) for found in distributions()}
for line in sys.stdin:
    name = re.match(r"[A-Za-z0-9._-]+", line)
    if name is None or plain(name[0]) not in installed:
        sys.stdout.write(line)
