"""Print the constraints of standard input that do not name a package installed here already.

A lock file's hashes, on lines of their own below a package, go with it; and with a torch that is
installed the libraries go that the package index's torch needs.
"""

import re
import sys
from importlib.metadata import distributions

OF_TORCH = re.compile(
    r"triton|cuda-.+|nvidia-(cublas|cuda|cudnn|cufft|cufile|curand|cusolver|cusparse|nccl"
    r"|nvjitlink|nvshmem|nvtx)(lt)?(-.+)?"
)


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# setuptools, by which this package is built, must be new enough; the base needs it for nothing.
installed = {plain(found.metadata["Name"]) for found in distributions()} - {"setuptools"}
kept = True
for line in sys.stdin:
    name = re.match(r"[A-Za-z0-9._-]+", line)
    if not line[0].isspace():
        own = plain(name[0]) if name is not None else ""
        brought = own in installed or ("torch" in installed and OF_TORCH.fullmatch(own))
        kept = not brought
    if kept:
        sys.stdout.write(line)
