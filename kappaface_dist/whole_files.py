"""Files that appear under their name only once they are complete, however their writing ends."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Asked for once, while there is one thread: it can only be read by setting it.
UMASK = os.umask(0o077)
os.umask(UMASK)


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """The name to write to, in the same folder, which becomes path when the block ends well.

    When it does not, what was written is removed and path stays as it was. A process that is killed
    leaves path.part, which the next one overwrites. The folder is made if it is absent. Others may
    read the file as they may any new one, also where a library made it for its owner alone.

    Args:
        shared: several processes may write path at once: each gets a name of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{uuid.uuid4().hex}" if shared else ""
    unfinished = path.with_name(f"{path.name}{own}.part")
    try:
        yield unfinished
        mode = 0o666 & ~UMASK
        if unfinished.stat().st_mode & 0o777 != mode:
            unfinished.chmod(mode)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write path, whole or not at all; what UTF-8 cannot hold of a text is spelled out."""
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content)
