"""A text file that says which class of one dataset is which class of another.

A line per identity: its class in the first, its class in the second, and anything else (its name,
say), separated by tabs; lines that begin with # are comments. `tools/map_identities.py` and
`tools/find_overlap.py` write such files.
Shapes: C classes of the second dataset.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from kappaface_dist.text_files import read_lines


class Side(NamedTuple):
    """One of the two: how a message calls a class of it, and how many it has."""

    called: str  # with {} where the number stands
    num_classes: int


def read_class_map(path: str | Path, first: Side, second: Side) -> np.ndarray:
    """The first's class of each class of the second [C], int64; −1 where it has none.

    Raises:
        ValueError: there is no such file, or a line is not of that form, or names a class out of
            range or one that another line names.
    """
    first_C = np.full(second.num_classes, -1, dtype=np.int64)
    line_of: tuple[dict[int, int], ...] = ({}, {})
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            pair = [int(field) for field in line.split("\t")[:2]]
            _, _ = pair
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is {line!r}: expected the numbers of two classes, with a"
                " tab between them"
            ) from error
        for side, value, lines in zip((first, second), pair, line_of, strict=True):
            if not 0 <= value < side.num_classes:
                raise ValueError(
                    f"{path}, line {number} names {side.called.format(value)}, and there are"
                    f" {side.num_classes}: classes run from 0 to {side.num_classes - 1}"
                )
            if value in lines:
                raise ValueError(
                    f"{path}, line {number} names {side.called.format(value)}, as line"
                    f" {lines[value]} does: keep one of them, since a class is one person, and a"
                    " person who is two classes of a dataset is joined there first"
                    " (convert_record.py --clean)"
                )
            lines[value] = number
        first_C[pair[1]] = pair[0]
    return first_C
