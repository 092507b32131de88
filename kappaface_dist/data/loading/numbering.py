"""Which of its class's images an image is.

Shapes: I images of the dataset.
"""

import numpy as np


def numbers_in_class(label_I: np.ndarray) -> np.ndarray:
    """The number of each image among those of its class, from 0 on, in their order: int32 [I]."""
    label_I = np.asarray(label_I)
    order_I = np.argsort(label_I, kind="stable")
    sorted_I = label_I[order_I]
    first_I = np.flatnonzero(np.concatenate([[True], sorted_I[1:] != sorted_I[:-1]]))
    size = np.diff(np.concatenate([first_I, [len(label_I)]]))
    number_I = np.empty(len(label_I), np.int32)
    number_I[order_I] = np.arange(len(label_I)) - np.repeat(first_I, size)
    return number_I
