"""Memory for batch after batch."""

import weakref
from collections import deque

import numpy as np

MAX_FREE = 8


class Buffers:
    """Arrays of one shape that come back when nobody uses them any more.

    New memory of this size comes from the kernel page by page and cleared, for every batch: that
    takes as long as a copy of the batch.
    """

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic]):
        self._shape = shape
        self._dtype = dtype
        self._free: deque[np.ndarray] = deque(maxlen=MAX_FREE)

    def take(self) -> np.ndarray:
        """An array with anything in it, to be used directly or by torch.from_numpy.

        Slices of it do not keep it from coming back: it, or a tensor of it, must outlive them.
        """
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(self._shape, self._dtype)
        array = memory.view()
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array
