"""Which images of a folder per identity form the pairs of a verification set.

Shapes: P pairs.
"""

import os
import re
from itertools import combinations
from pathlib import Path

import numpy as np

from kappaface_dist.data.sources.base import list_identities, list_images
from kappaface_dist.evaluation.folds import (
    NUM_FOLDS,
    folds_of_one_kind,
    order_for_folds,
    spread_evenly,
)
from kappaface_dist.text_files import read_lines

Pair = tuple[Path, Path, bool]
Image = tuple[str, int]  # of an identity, by its number
Reading = tuple[Image, Image, bool]


def images_by_identity(folder: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """Identity -> its images, both sorted by name; what is no image by its name is left out.

    Raises:
        ValueError: the folder is missing or has no folder with images in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"there is no folder {folder}: name one that holds a folder per identity")
    identities = {}
    for identity in list_identities(root):
        images, _ = list_images(root / identity)
        if images:
            identities[identity] = [root / identity / name for name in images]
    if not identities:
        raise ValueError(
            f"{folder} has no sub-folder with images in it: put each identity's images into a"
            " folder of its own"
        )
    return identities


def all_pairs(identities: dict[str, list[Path]], seed: int) -> list[Pair]:
    """Every same pair and as many different ones, drawn without repetition, in alternation.

    In alternation, so that each fold of the ten-fold protocol, a block of consecutive pairs, holds
    as many same as different pairs. Where the folder has fewer different pairs than same ones, all
    of them are taken, spread evenly.

    Raises:
        ValueError: no two images of one identity, or a single identity.
    """
    same = [pair for images in identities.values() for pair in combinations(images, 2)]
    if not same or len(identities) < 2:
        raise ValueError(
            f"{len(identities)} identities with {len(same)} pairs of the same identity, expected"
            " two identities or more and two images of one of them"
        )
    generator = np.random.default_rng(seed)
    images = [path for paths in identities.values() for path in paths]
    owner = np.repeat(np.arange(len(identities)), [len(paths) for paths in identities.values()])
    num_different = (len(images) ** 2 - sum(len(p) ** 2 for p in identities.values())) // 2
    wanted = min(len(same), num_different)
    drawn: dict[tuple[int, int], None] = {}
    if wanted > num_different // 2:
        # So many of all that drawing at random would mostly repeat itself.
        every = [
            pair for pair in combinations(range(len(images)), 2) if owner[pair[0]] != owner[pair[1]]
        ]
        drawn = {every[i]: None for i in generator.permutation(len(every))[:wanted]}
    while len(drawn) < wanted:
        first, second = sorted(generator.integers(len(images), size=2).tolist())
        if owner[first] != owner[second]:
            drawn[first, second] = None
    pairs = [(*same[i], True) for i in generator.permutation(len(same))]
    pairs += [(images[first], images[second], False) for first, second in drawn]
    return [pairs[i] for i in spread_evenly(np.arange(len(pairs)) < len(same))]


def listed_pairs(path: str | os.PathLike[str], identities: dict[str, list[Path]]) -> list[Pair]:
    """The pairs of a list in LFW's format, in its order.

    The first line is "folds n" (or "n", one fold). Each fold is n lines "name a b", the images a
    and b of one person, then n lines "name a other b", in this order or another. Image 4 of a
    person is the file named NAME_0004, or 4 with any number of leading zeros, with any extension.
    Fields are separated by tabs or spaces; names may hold spaces.

    Raises:
        ValueError: the file is not in the format, or names an image that the folder lacks.
    """
    rows = [(n, line) for n, line in enumerate(read_lines(Path(path)), 1) if line.strip()]
    header = rows[0][1].split() if rows else []
    if len(header) not in (1, 2) or not all(field.isdecimal() for field in header):
        raise ValueError(
            f"{path}: the first line is {' '.join(header)!r}, expected the number of folds and of"
            " pairs of each kind per fold, as in '10 300'"
        )
    folds, per_fold = (int(field) for field in (["1", *header])[-2:])
    if len(rows) - 1 != 2 * folds * per_fold:
        raise ValueError(
            f"{path}: the first line announces {folds} folds of twice {per_fold} pairs, the file"
            f" has {len(rows) - 1} pairs instead of {2 * folds * per_fold}"
        )
    numbered: dict[Image, list[Path]] = {}
    for name, images in identities.items():
        for image in images:
            if (image_number := _number(name, image)) is not None:
                numbered.setdefault((name, image_number), []).append(image)
    pairs: list[Pair] = []
    misplaced: list[str] = []
    for position, (line, text) in enumerate(rows[1:]):
        same = position % (2 * per_fold) < per_fold
        pairs.append(_pair(f"{path} line {line}", text, same, numbered))
        if pairs[-1][2] != same:
            misplaced.append(
                f"{path} line {line} has {len(_fields(text))} fields, expected"
                f" {'name a b' if same else 'name a other b'}"
            )
    if 2 * sum(pair[2] for pair in pairs) != len(pairs):
        raise ValueError(misplaced[0])
    return pairs


def in_folds(pairs: list[Pair]) -> tuple[list[Pair], str]:
    """Pairs in an order in which every tenth of them, a fold, holds both kinds; and what was done.

    Readers of .bin files take consecutive pairs for a fold. The order stays where it is good, and
    where there are too few pairs of a kind.
    """
    same_P = np.array([pair[2] for pair in pairs], dtype=bool)
    order_P, remark = order_for_folds(same_P)
    if not remark or order_P is None:
        return pairs, ""
    return [pairs[i] for i in order_P], (
        f"in the order of the list {folds_of_one_kind(same_P)} of {NUM_FOLDS} folds would hold one"
        " kind of pairs only: same and different pairs are written in turn"
    )


def _pair(where: str, text: str, same: bool, numbered: dict[Image, list[Path]]) -> Pair:
    """What a line says; of two readings that both make sense the kind that is due at its place."""
    readings = _readings(text)
    known = [(a, b, kind) for a, b, kind in readings if a in numbered and b in numbered]
    known = [reading for reading in known if reading[2] == same] or known
    if len(known) > 1:
        raise ValueError(
            f"{where} is {text!r}, which can be read as {len(known)} pairs: separate its fields by"
            " tabs"
        )
    if not known:
        raise ValueError(f"{where} {_fault(text, same, readings, numbered)}")
    first, second, kind = known[0]
    for name, number in (first, second):
        if len(numbered[name, number]) > 1:
            raise ValueError(
                f"{where} names image {number} of {name}, and the folder has"
                f" {' and '.join(path.name for path in numbered[name, number])}: keep one of them"
            )
    return numbered[first][0], numbered[second][0], kind


def _fault(
    text: str, same: bool, readings: list[Reading], numbered: dict[Image, list[Path]]
) -> str:
    """Why a line names no two images of the folder."""
    meant = [reading for reading in readings if reading[2] == same] or readings
    fields = _fields(text)
    named: list[tuple[str, str]] = []
    if meant:
        named = [(name, str(number)) for name, number in meant[0][:2]]
    elif len(fields) == (3 if same else 4):
        named = [(fields[0], fields[1]), (fields[0 if same else 2], fields[-1])]
    for name, number in named:
        if not number.isdecimal() or (name, int(number)) not in numbered:
            return (
                f"names image {number} of {name}, and the folder has no"
                f" {name}/{name}_{number:>04}.* and no {name}/{number}.*"
            )
    return f"has {len(fields)} fields, expected {'name a b' if same else 'name a other b'}"


def _readings(text: str) -> list[Reading]:
    """All that a line can say; by its tabs alone, where they make three or four fields."""
    fields = _fields(text)
    if "\t" in text.strip() and len(fields) in (3, 4):
        name, other = fields[0], fields[-2] if len(fields) == 4 else fields[0]
        if not (fields[1].isdecimal() and fields[-1].isdecimal()):
            return []
        return [((name, int(fields[1])), (other, int(fields[-1])), len(fields) == 3)]
    readings: list[Reading] = []
    if found := re.fullmatch(r"\s*(.*?)\s+([0-9]+)\s+([0-9]+)\s*", text):
        readings.append(((found[1], int(found[2])), (found[1], int(found[3])), True))
    if found := re.fullmatch(r"\s*(.*?)\s+([0-9]+)\s*", text):
        # Any number in the line can be that of the first image: names may hold numbers.
        for middle in re.finditer(r"\s+([0-9]+)(?=\s+\S)", found[1]):
            name, other = found[1][: middle.start()], found[1][middle.end() :].lstrip()
            readings.append(((name, int(middle[1])), (other, int(found[2])), False))
    return readings


def _fields(text: str) -> list[str]:
    """By tabs where there are any: then a name may hold spaces."""
    fields = text.strip().split("\t") if "\t" in text.strip() else text.split()
    return [field.strip() for field in fields if field.strip()]


def _number(name: str, image: Path) -> int | None:
    digits = image.stem.removeprefix(f"{name}_")
    return int(digits) if digits.isdecimal() else None
