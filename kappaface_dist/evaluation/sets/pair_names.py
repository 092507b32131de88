"""Who is in the pictures of a verification set: the side file of a .bin.

A .bin says which pairs show one person, and not who that is. NAME.bin.identities.json beside it
does: {"format", "sha256": of the .bin, "names": [...], "pairs": [[number, number], ...]}, a name
for each identity and the numbers of both images' identities in each pair.
Shapes: P pairs.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from kappaface_dist.text_files import read_text
from kappaface_dist.whole_files import whole_file

logger = logging.getLogger(__name__)
FORMAT = "kappaface pairs' identities 1"


@dataclass(frozen=True)
class PairNames:
    """The identities of a set: their names, and identity_P2, their numbers in each pair."""

    names: list[str]
    identity_P2: np.ndarray

    def of_pair(self, number: int) -> tuple[str, str]:
        """Who is in both pictures of a pair."""
        first, second = self.identity_P2[number].tolist()
        return self.names[first], self.names[second]


def names_path(path: str | os.PathLike[str]) -> Path:
    """The side file of a .bin."""
    return Path(path).with_name(f"{Path(path).name}.identities.json")


def write_names(path: Path, names: Sequence[tuple[str, str]] | None) -> None:
    """Write the side file of a .bin that is there, or remove one that a .bin before it had.

    Args:
        names: who is in both pictures of each pair; None where nobody knows.
    """
    if names is None:
        names_path(path).unlink(missing_ok=True)
        return
    number_of: dict[str, int] = {}
    for pair in names:
        for name in pair:
            number_of.setdefault(name, len(number_of))
    content = {
        "format": FORMAT,
        "sha256": sha256(path.read_bytes()).hexdigest(),
        "names": list(number_of),
        "pairs": [[number_of[first], number_of[second]] for first, second in names],
    }
    with whole_file(names_path(path)) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="ascii")


def read_names(path: Path, content: bytes, same_P: np.ndarray) -> PairNames | None:
    """The identities of a .bin; None, and a warning, where the side file is not of this .bin.

    Args:
        content: of the .bin.
    """
    side = names_path(path)
    if not side.is_file():
        return None
    fault = ""
    try:
        found = json.loads(read_text(side))
        if found["format"] != FORMAT:
            fault = f"its format is {found['format']!r:.40}, expected {FORMAT!r}"
        elif found["sha256"] != sha256(content).hexdigest():
            fault = "it was written for another file than this .bin"
        else:
            names = [str(name) for name in found["names"]]
            identity_P2 = np.array(found["pairs"], dtype=np.int64).reshape(-1, 2)
            fits = len(identity_P2) == len(same_P) and len(set(names)) == len(names)
            fits = fits and np.array_equal(np.unique(identity_P2), np.arange(len(names)))
            if fits and ((identity_P2[:, 0] == identity_P2[:, 1]) == same_P).all():
                return PairNames(names, identity_P2)
            fault = "its identities contradict the pairs"
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        fault = f"it is damaged ({error})"
    logger.warning(
        "%s is not used: %s; who is who in %s is guessed, write the set again for names",
        *(side, fault, path),
    )
    return None
