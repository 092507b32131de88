"""Unpickling a verification set without running anything in it.

A pickle is a program that names functions and calls them. The few names that files of pairs use are
answered by stand-ins of ours, which only take bytes and numbers out; every other name is refused.
"""

import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from kappaface_dist.restricted_pickle import Refused


class StoredArray:
    """Stands for a numpy array of plain numbers: its type, shape and bytes, taken out by hand."""

    __slots__ = ("dtype", "payload", "shape")

    def __init__(self) -> None:
        self.dtype = np.dtype(np.uint8)
        self.payload: bytes | None = None
        self.shape: tuple[int, ...] = ()

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, payload = state
        self.fill(payload, dtype, shape)

    def fill(self, payload: Any, dtype: Any, shape: Any) -> None:
        if not isinstance(dtype, _Dtype) or not isinstance(payload, (bytes, bytearray)):
            raise Refused("it holds a numpy array that is not of plain numbers")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise Refused(f"it holds a numpy array of shape {shape!r:.40}")
        if math.prod(shape) * dtype.value.itemsize != len(payload):
            raise Refused(
                f"it holds a numpy array of shape {shape} over {len(payload)} bytes, which do not"
                " fill it"
            )
        self.dtype, self.payload, self.shape = dtype.value, bytes(payload), shape

    @property
    def is_line(self) -> bool:
        """One row, or one column as cv2.imencode makes it: then there is only one order."""
        return len([n for n in self.shape if n != 1]) <= 1

    def image(self) -> bytes | None:
        """The bytes of an encoded image; None for an array that was never filled."""
        if self.payload is None:
            return None
        if self.dtype != np.uint8:
            raise Refused(
                f"it holds a numpy array of type {self.dtype.str.lstrip('<>|')!r} as an image,"
                " expected uint8"
            )
        if not self.is_line:
            raise Refused(
                f"it holds a numpy array of shape {self.shape}, expected encoded images of one"
                " dimension"
            )
        return self.payload

    def numbers(self) -> list[Any]:
        """The values of an array of one dimension, as Python's own numbers."""
        if self.payload is None or not self.is_line:
            raise Refused(f"it holds flags in a numpy array of shape {self.shape}, expected a row")
        return np.frombuffer(self.payload, self.dtype).tolist()


class _Dtype:
    """Stands for numpy.dtype of a plain number; of its state only the byte order says anything."""

    __slots__ = ("value",)

    def __init__(self, value: np.dtype) -> None:
        self.value = value

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or any(state[3:5]):
            raise Refused("it holds a numpy array with fields")
        if state[1] in (">", b">"):
            self.value = self.value.newbyteorder(">")
        elif state[1] in ("<", b"<"):
            self.value = self.value.newbyteorder("<")
        elif state[1] not in ("|", "=", b"|", b"="):
            raise Refused(f"it holds a numpy array of byte order {state[1]!r:.20}")


class StandIn:
    """A callable of ours that the pickle can call and nothing else: no attribute can be set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise Refused("it tries to change a function")


def _empty_array(*_: Any) -> StoredArray:
    return StoredArray()


def _dtype(name: Any, *_: Any) -> _Dtype:
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    if not isinstance(text, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", text):
        raise Refused(f"it holds a numpy array of type {name!r:.40}, expected uint8, or flags")
    return _Dtype(np.dtype(text))


def _array_from_buffer(payload: Any, dtype: Any, shape: Any, _order: Any) -> StoredArray:
    array = StoredArray()
    array.fill(payload, dtype, shape)
    return array


def _scalar(dtype: Any, payload: Any) -> Any:
    array = StoredArray()
    array.fill(payload, dtype, ())
    return array.numbers()[0]


def _bytes(*args: Any) -> bytes:
    """bytes() and bytearray() as pickles write them: of nothing, of bytes, of Latin-1 text."""
    if len(args) == 1 and isinstance(args[0], (bytes, bytearray)):
        return bytes(args[0])
    if args and isinstance(args[0], str):
        return _encode(*args)
    if args:
        # A number would ask for so many bytes.
        raise Refused("it makes bytes in a way that pickles do not")
    return b""


def _encode(text: Any, encoding: Any = None) -> bytes:
    """How protocols 0 to 2 spell bytes: text of which each character is one."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1", b"latin-1"):
        raise Refused("it encodes text in a way that pickles of bytes do not")
    return text.encode("latin-1")


def _not_callable(*_: Any) -> None:
    raise Refused("it makes a numpy array in a way that numpy's own pickles do not")


# numpy 2 moved numpy.core to numpy._core; the buffer form is what protocol 5 writes.
STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _not_callable,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _array_from_buffer,
    # What protocols 0 to 4 make of bytes and bytearrays; __builtin__ is Python 2's name.
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _bytes,
    ("__builtin__", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytes,
    ("__builtin__", "bytearray"): _bytes,
}


# pickle's Python form: the C form sizes its memo by the largest index that the file names, so four
# damaged bytes take all memory. It reads a set of 6000 pairs in under a second.
class _PairUnpickler(pickle._Unpickler):
    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise Refused(
                f"the pickle asks for {module}.{name}, and a verification set needs only lists,"
                " bytes, numbers and numpy arrays of them (loading it could run code)"
            )
        return StandIn(STAND_INS[module, name])


def _load_bytearray(unpickler: Any) -> None:
    """As bytes, of which no more are made than the file holds: pickle's own makes the claimed."""
    (length,) = struct.unpack("<Q", unpickler.read(8))
    payload = unpickler.read(length)
    if len(payload) != length:
        raise pickle.UnpicklingError(f"a bytearray claims {length} bytes, {len(payload)} follow")
    unpickler.append(payload)


_PairUnpickler.dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray


def load(content: bytes) -> Any:
    """What a pickle holds, with StoredArray for each numpy array.

    Raises:
        Refused: it names anything that a set of pairs does not need.
        Exception: one of restricted_pickle.MALFORMED, where it is damaged or no pickle.
    """
    # encoding: Python 2 wrote the field's original files, whose images are its str.
    return _PairUnpickler(io.BytesIO(content), encoding="bytes").load()


def describe(value: Any) -> str:
    """A value, for a sentence on what was found."""
    if isinstance(value, (StandIn, _Dtype)):
        return "a name of numpy"
    if isinstance(value, StoredArray):
        filled = value.payload is not None
        return f"a numpy array of shape {value.shape}" if filled else "a numpy array without bytes"
    if isinstance(value, (list, tuple, bytes, bytearray, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r:.40} ({type(value).__name__})"
