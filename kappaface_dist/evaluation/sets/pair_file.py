"""Verification sets: the .bin files of the field, read without trusting them, and written.

A .bin is a pickle of (2P encoded images, P flags): images 2i and 2i+1 are pair i, and flag i says
whether both show one person. An image is bytes, a bytearray, or a numpy uint8 array of one row or
column; flags are a list or a numpy array of booleans, or of numbers that are 0 and 1.
A pickle is a program; pair_pickle.py reads it and runs none of it.
Shapes: P pairs.
"""

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.evaluation.sets import pair_pickle
from kappaface_dist.evaluation.sets.pair_names import PairNames, read_names, write_names
from kappaface_dist.restricted_pickle import MALFORMED, Refused
from kappaface_dist.whole_files import whole_file

# The oldest protocol that stores bytes as bytes: every Python 3 reads it, without numpy.
PROTOCOL = 3


@dataclass(frozen=True)
class PairFile:
    """A verification set: payloads[2i] and payloads[2i+1] are pair i, encoded as in the file.

    names: who is in the pictures, where the set's side file says so.
    """

    payloads: list[bytes]
    same_P: np.ndarray
    names: PairNames | None = None

    @property
    def num_pairs(self) -> int:
        return len(self.same_P)


def read_pairs(path: str | os.PathLike[str]) -> PairFile:
    """Read a .bin verification set; payloads stay encoded.

    Equal images that the file stores once are one bytes object here too.

    Raises:
        ValueError: the file is damaged, is something else, or would run code; says which.
        OSError: the file cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}, expected a verification set (.bin)")
    try:
        # From memory, where a false length cannot make the read allocate more than the file holds.
        stored = Path(path).read_bytes()
        payloads, flags = _contents(pair_pickle.load(stored))
    except Refused as refused:
        raise ValueError(f"{path} is refused: {refused}") from refused
    except _NotPairs as error:
        raise ValueError(f"{path}{error}") from error
    except MALFORMED as error:
        raise ValueError(
            f"{path} is not a readable pickle of a verification set"
            f" ({type(error).__name__}: {error}): is the file complete?"
        ) from error
    _check_counts(path, payloads, flags)
    same_P = np.array(flags, dtype=bool)
    return PairFile(payloads, same_P, read_names(Path(path), stored, same_P))


class _NotPairs(Exception):
    """A readable pickle of something else; the message goes on after the file's name."""


def _contents(content: Any) -> tuple[list[bytes], list[Any]]:
    describe = pair_pickle.describe
    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise _NotPairs(
            f" holds {describe(content)}, expected the two lists of a verification set: encoded"
            " images, then flags"
        )
    images, flags = content
    if isinstance(flags, pair_pickle.StoredArray):
        flags = flags.numbers()
    if not isinstance(images, (tuple, list)) or not isinstance(flags, (tuple, list)):
        raise _NotPairs(
            f" holds {describe(images)} and {describe(flags)}, expected a list of encoded images"
            " and a list of flags"
        )
    # A bytearray that occurs twice stays one object, as bytes do.
    payload_of: dict[int, bytes] = {}
    payloads = []
    for position, image in enumerate(images):
        payload = payload_of.get(id(image))
        if payload is None:
            payload = payload_of[id(image)] = _payload(position, image)
        payloads.append(payload)
    for position, flag in enumerate(flags):
        if not isinstance(flag, (int, float)) or flag not in (0, 1):
            raise _NotPairs(f": flag {position} is {describe(flag)}, expected True or False")
    return payloads, list(flags)


def _payload(position: int, image: Any) -> bytes:
    payload = image.image() if isinstance(image, pair_pickle.StoredArray) else image
    if not isinstance(payload, (bytes, bytearray)) or not payload:
        raise _NotPairs(
            f": image {position} is {pair_pickle.describe(image)}, expected the bytes of an"
            " encoded image, or a numpy uint8 array of them"
        )
    return bytes(payload)


def write_pairs(
    path: str | os.PathLike[str],
    payloads: Sequence[bytes],
    same: Sequence[bool] | np.ndarray,
    names: Sequence[tuple[str, str]] | None = None,
) -> None:
    """Write a .bin verification set that this reader and the field's own (pickle.load) read.

    The file appears under its name only once it is complete. A bytes object that occurs several
    times in payloads is stored once.

    Args:
        names: who is in both pictures of each pair, for a side file (pair_names.py).

    Raises:
        ValueError: the number of payloads is not twice the number of flags, or is 0.
    """
    flags = [bool(flag) for flag in same]
    _check_counts(path, payloads, flags)
    with whole_file(Path(path)) as unfinished, unfinished.open("wb") as file:
        pickle.dump((list(payloads), flags), file, protocol=PROTOCOL)
    write_names(Path(path), names)


def _check_counts(
    path: str | os.PathLike[str], payloads: Sequence[bytes], flags: Sequence[Any]
) -> None:
    if not flags or len(payloads) != 2 * len(flags):
        raise ValueError(
            f"{path}: {len(payloads)} images and {len(flags)} flags, expected two images for each"
            " flag and at least one pair"
        )
