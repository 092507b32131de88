"""Which group each image of a verification set is of: by image, or by the person it shows.

Shapes: P pairs.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def read_groups(
    path: Path, people: Sequence[str] | None, num_pairs: int
) -> tuple[list[str], np.ndarray, int]:
    """The groups of a file of lines "KEY GROUP", and group_P2: a number of them, -1 for none.

    Keys are names of people if any is one of the set's, else numbers of images from 0 on, images 2i
    and 2i + 1 being pair i. Columns are separated by a comma, a tab or spaces; a group's name has
    no space. Lines that begin with # are passed over.

    Returns:
        names, group_P2, and the number of keys that are nobody's, a heading among them.

    Raises:
        ValueError: a line is not understood, says another group than one before, or no image has a
            group.
    """
    group_of: dict[str, str] = {}
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            key, _, group = text.replace(",", "\t").replace("\t", " ").rpartition(" ")
            key = key.strip()
            if not key:
                raise ValueError(
                    f"{path} line {number} is {text[:60]!r}: expected a person or the number of an"
                    " image, and a group"
                )
            if group_of.setdefault(key, group) != group:
                raise ValueError(
                    f"{path} line {number}: {key} is in group {group}, an earlier line has it in"
                    f" {group_of[key]}"
                )
    keys: Sequence[str] = [str(number) for number in range(2 * num_pairs)]
    if people is not None and not group_of.keys().isdisjoint(people):
        keys = people
    found = [group_of.get(key) for key in keys]
    names = sorted({group for group in found if group is not None})
    if not names:
        raise ValueError(
            f"{path}: none of its {len(group_of)} keys is an image's number"
            + (
                " or a person of the set"
                if people
                else "; no list of identities lies beside the set"
            )
        )
    number_of = {name: number for number, name in enumerate(names)}
    group_P2 = np.array([-1 if each is None else number_of[each] for each in found]).reshape(-1, 2)
    return names, group_P2, len(group_of.keys() - set(keys))
