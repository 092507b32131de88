"""Lists of classes to leave out of a dataset: the label of a class at the beginning of each line.

What follows it, after white space, is for people. Lines that begin with # are comments.
"""

from collections.abc import Iterable
from pathlib import Path

from kappaface_dist.text_files import read_lines, shown
from kappaface_dist.whole_files import write_whole


def write_drop_list(path: Path, comment: str, classes: Iterable[tuple[int, str]]) -> None:
    """Write a list of (label, why)."""
    lines = [f"# {shown(comment)}\n", *(f"{label}\t{shown(why)}\n" for label, why in classes)]
    write_whole(path, "".join(lines))


def read_drop_list(path: Path) -> list[int]:
    """The labels of a list, each once.

    Raises:
        ValueError: there is no such file, it names no class, or a line does not begin with one.
    """
    labels = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            labels.append(int(line.split()[0]))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is {line!r:.60}: expected the label of a class to leave"
                " out, and anything after it"
            ) from error
    if not labels:
        raise ValueError(f"{path} names no class to leave out: convert without --drop")
    return list(dict.fromkeys(labels))
