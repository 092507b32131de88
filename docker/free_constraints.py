"""Print the constraints of standard input that do not name a package installed here already.

A lock file's hashes, on lines of their own below a package, go with it.
"""

import re
import sys
from importlib.metadata import distributions


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# pip itself and its kin are of no account.
installed = {plain(found.metadata["Name"]) for found in distributions()}
kept = True
for line in sys.stdin:
    name = re.match(r"[A-Za-z0-9._-]+", line)
    if not line[0].isspace():
        kept = name is None or plain(name[0]) not in installed
    if kept:
        sys.stdout.write(line)
