"""Files that appear under their name only once they are complete, however their writing ends."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """The name to write to, in the same folder, which becomes path when the block ends well.

    When it does not, what was written is removed and path stays as it was. A process that is killed
    leaves path.part, which the next one overwrites. The folder is made if it is absent.

    Args:
        shared: several processes may write path at once: each gets a name of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{uuid.uuid4().hex}" if shared else ""
    unfinished = path.with_name(f"{path.name}{own}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
