"""What readers of untrusted pickles share: a pickle is a program, and these run none of it."""

import pickle
import struct

# What Python's unpickler raises on a file that is damaged or no pickle at all.
MALFORMED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    struct.error,
)


class Refused(Exception):
    """The pickle asks for something that its kind of file does not need."""
