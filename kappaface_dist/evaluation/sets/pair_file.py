"""Verification sets: the .bin files of the field, read without trusting them, and written.

A .bin is a pickle of (2P encoded images, P flags): images 2i and 2i+1 are pair i, and flag i says
whether both show one person. An image is bytes, or a numpy uint8 array of one row or column.
A pickle is a program; this reader runs none of it. The few numpy names that real files use are
answered by stand-ins that only take the bytes out, every other name is refused.
Shapes: P pairs.
"""

import io
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.restricted_pickle import MALFORMED, Refused
from kappaface_dist.whole_files import whole_file

# The oldest protocol that stores bytes as bytes: every Python 3 reads it, without numpy.
PROTOCOL = 3


@dataclass(frozen=True)
class PairFile:
    """A verification set: payloads[2i] and payloads[2i+1] are pair i, encoded as in the file."""

    payloads: list[bytes]
    same_P: np.ndarray

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
        # encoding: Python 2 wrote the field's original files, whose images are its str.
        content = _PairUnpickler(io.BytesIO(Path(path).read_bytes()), encoding="bytes").load()
    except Refused as refused:
        raise ValueError(f"{path} is refused: {refused}") from refused
    except MALFORMED as error:
        raise ValueError(
            f"{path} is not a readable pickle of a verification set"
            f" ({type(error).__name__}: {error}): is the file complete?"
        ) from error
    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise ValueError(
            f"{path} holds {_describe(content)}, expected the two lists of a verification set:"
            " encoded images, then flags"
        )
    images, flags = content
    if not isinstance(images, (tuple, list)) or not isinstance(flags, (tuple, list)):
        raise ValueError(
            f"{path} holds {_describe(images)} and {_describe(flags)}, expected a list of encoded"
            " images and a list of flags"
        )
    payloads = [_payload(path, position, image) for position, image in enumerate(images)]
    for position, flag in enumerate(flags):
        if not isinstance(flag, int) or flag not in (0, 1):
            raise ValueError(
                f"{path}: flag {position} is {_describe(flag)}, expected True or False"
            )
    _check_counts(path, payloads, flags)
    return PairFile(payloads, np.array(flags, dtype=bool))


def write_pairs(
    path: str | os.PathLike[str], payloads: Sequence[bytes], same: Sequence[bool] | np.ndarray
) -> None:
    """Write a .bin verification set that this reader and the field's own (pickle.load) read.

    The file appears under its name only once it is complete. A bytes object that occurs several
    times in payloads is stored once.

    Raises:
        ValueError: the number of payloads is not twice the number of flags, or is 0.
    """
    flags = [bool(flag) for flag in same]
    _check_counts(path, payloads, flags)
    with whole_file(Path(path)) as unfinished, unfinished.open("wb") as file:
        pickle.dump((list(payloads), flags), file, protocol=PROTOCOL)


def _check_counts(
    path: str | os.PathLike[str], payloads: Sequence[bytes], flags: Sequence[Any]
) -> None:
    if not flags or len(payloads) != 2 * len(flags):
        raise ValueError(
            f"{path}: {len(payloads)} images and {len(flags)} flags, expected two images for each"
            " flag and at least one pair"
        )


class _Array:
    """Stands for a numpy array: keeps the bytes of a uint8 array of one row or column."""

    __slots__ = ("payload",)

    def __init__(self) -> None:
        self.payload: bytes | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, payload = state
        self.fill(payload, dtype, shape)

    def fill(self, payload: Any, dtype: Any, shape: Any) -> None:
        if not isinstance(dtype, _Dtype) or not isinstance(payload, (bytes, bytearray)):
            raise Refused("it holds a numpy array that is not plain uint8")
        # One row, or one column as cv2.imencode makes it: then there is only one order of bytes.
        if not isinstance(shape, tuple) or [n for n in shape if n != 1] != [len(payload)]:
            raise Refused(
                f"it holds a numpy array of shape {shape} over {len(payload)} bytes, expected"
                " encoded images of one dimension"
            )
        self.payload = bytes(payload)


class _Dtype:
    """Stands for numpy.dtype("uint8"); its state (byte order and such) says nothing new."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or any(state[3:5]):
            raise Refused("it holds a numpy array with fields")


class _StandIn:
    """A callable of ours that the pickle can call and nothing else: no attribute can be set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise Refused("it tries to change a function")


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _dtype(name: Any, *_: Any) -> _Dtype:
    if name not in ("u1", b"u1", "|u1", b"|u1"):
        raise Refused(f"it holds a numpy array of type {name!r}, expected uint8")
    return _Dtype()


def _array_from_buffer(payload: Any, dtype: Any, shape: Any, _order: Any) -> _Array:
    array = _Array()
    array.fill(payload, dtype, shape)
    return array


def _not_callable(*_: Any) -> None:
    raise Refused("it makes a numpy array in a way that numpy's own pickles do not")


# numpy 2 moved numpy.core to numpy._core; the buffer form is what protocol 5 writes.
STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _not_callable,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _array_from_buffer,
}


# pickle's Python form: the C form sizes its memo by the largest index that the file names, so four
# damaged bytes take all memory. It reads a set of 6000 pairs in under a second.
class _PairUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise Refused(
                f"the pickle asks for {module}.{name}, and a verification set needs only lists,"
                " bytes, bools and numpy uint8 arrays (loading it could run code)"
            )
        return _StandIn(STAND_INS[module, name])


def _payload(path: str | os.PathLike[str], position: int, image: Any) -> bytes:
    payload = image.payload if isinstance(image, _Array) else image
    if not isinstance(payload, bytes) or not payload:
        raise ValueError(
            f"{path}: image {position} is {_describe(image)}, expected the bytes of an encoded"
            " image, or a numpy uint8 array of them"
        )
    return payload


def _describe(value: Any) -> str:
    if isinstance(value, (_StandIn, _Dtype)):
        return "a name of numpy"
    if isinstance(value, _Array):
        return "a numpy array without bytes"
    if isinstance(value, (list, tuple, bytes, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r:.40} ({type(value).__name__})"
