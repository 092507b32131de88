"""Which images of a folder per identity form the pairs of a verification set.

Shapes: P pairs.
"""

import os
from itertools import combinations
from pathlib import Path

import numpy as np

from kappaface_dist.data.sources.base import list_identities, list_images

Pair = tuple[Path, Path, bool]


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
    # Each kind spread evenly over the whole: for equal numbers, same and different alternate.
    place = np.concatenate([(np.arange(n) + 0.5) / n for n in (len(same), wanted)])
    return [pairs[i] for i in np.argsort(place, kind="stable")]


def listed_pairs(path: str | os.PathLike[str], identities: dict[str, list[Path]]) -> list[Pair]:
    """The pairs of a list in LFW's format, in its order.

    The first line is "folds n" (or "n", one fold). Each fold is n lines "name a b", the images a
    and b of one person, then n lines "name a other b". Image 4 of a person is the file named
    NAME_0004, or 4 with any number of leading zeros, with any extension.

    Raises:
        ValueError: the file is not in the format, or names an image that the folder lacks.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    header = rows[0][1] if rows else []
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
    numbered = {
        (name, number): image
        for name, images in identities.items()
        for image in images
        if (number := _number(name, image)) is not None
    }
    pairs = []
    for position, (line, fields) in enumerate(rows[1:]):
        same = position % (2 * per_fold) < per_fold
        if len(fields) != (3 if same else 4):
            raise ValueError(
                f"{path} line {line} has {len(fields)} fields, expected"
                f" {'name a b' if same else 'name a other b'}"
            )
        other = fields[0] if same else fields[2]
        chosen = []
        for name, text in ((fields[0], fields[1]), (other, fields[-1])):
            if not text.isdecimal() or (name, int(text)) not in numbered:
                raise ValueError(
                    f"{path} line {line} names image {text} of {name}, and the folder has no"
                    f" {name}/{name}_{text:>04}.* and no {name}/{text}.*"
                )
            chosen.append(numbered[name, int(text)])
        pairs.append((chosen[0], chosen[1], same))
    return pairs


def _number(name: str, image: Path) -> int | None:
    digits = image.stem.removeprefix(f"{name}_")
    return int(digits) if digits.isdecimal() else None
