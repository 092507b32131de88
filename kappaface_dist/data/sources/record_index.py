"""Where the records of a RecordIO file begin.

Shapes: R records of a file, L lines of a text.
"""

from pathlib import Path

import numpy as np

from kappaface_dist.data.sources.recordio_writer import CFLAG_FIRST, CFLAG_SHIFT, MAGIC

CHUNK_BYTES = 1 << 20  # of .idx text: a few arrays of this size stay in the processor's cache
CHUNK_WORDS = 1 << 22
MAX_DIGITS = 18  # of a number that fits 64 bits
NEWLINE, DIGIT_ZERO = 10, 48
SEPARATORS = (9, 32)  # tab, space


def find_records(path: Path, words: np.ndarray) -> np.ndarray:
    """The bytes at which the records of the .rec file begin: int64 [R], ascending.

    They come from the .idx file beside it (lines of "key<TAB>byte", in any order), or, without one,
    from a scan of the file, given as little-endian words.

    Raises:
        ValueError: the .idx is malformed or empty, or there is no record in the file.
    """
    index = path.with_suffix(".idx")
    offset_R = read_index(index) if index.is_file() else scan_starts(words)
    if len(offset_R) == 0:
        raise ValueError(
            f"{index} is empty: delete it to have it rebuilt by a scan"
            if index.is_file()
            else f"{path} has no record in it: it is not a RecordIO file, or damaged"
        )
    if np.any(offset_R[1:] < offset_R[:-1]):
        offset_R = np.sort(offset_R)
    return offset_R


def read_index(path: Path) -> np.ndarray:
    """The second column of an .idx file: int64 [R], in the file's order.

    Raises:
        ValueError: a line is not two whole numbers.
    """
    columns = []
    num_lines = 0
    rest = b""
    with path.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            text, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                columns.append(_last_column(text + newline, path, num_lines))
                num_lines += len(columns[-1])
    if rest.strip():
        columns.append(_last_column(rest + b"\n", path, num_lines))
    return np.concatenate(columns) if columns else np.empty(0, dtype=np.int64)


def scan_starts(words: np.ndarray) -> np.ndarray:
    """The bytes at which whole records or first parts begin: int64 [R].

    Writers cut records at magic numbers, so each magic number in the file begins a part.
    """
    starts = []
    for first in range(0, len(words), CHUNK_WORDS):
        found = np.flatnonzero(words[first : first + CHUNK_WORDS] == MAGIC) + first
        found = found[found < len(words) - 1]
        starts.append(found[words[found + 1] >> CFLAG_SHIFT <= CFLAG_FIRST])
    return np.concatenate(starts).astype(np.int64) * 4


def _last_column(text: bytes, path: Path, lines_before: int) -> np.ndarray:
    """The numbers at the ends of the lines, all lines at once, digit by digit from the right."""
    if b"\r" in text:
        text = text.replace(b"\r", b"")
    chars = np.frombuffer(text, dtype=np.uint8)
    newline_L = np.flatnonzero(chars == NEWLINE)
    start_L = np.append(0, newline_L[:-1] + 1)
    digits = chars - np.uint8(DIGIT_ZERO)  # others wrap round to 10 and above
    value_L = np.zeros(len(newline_L), dtype=np.int64)
    at_L = newline_L - 1
    in_number_L = at_L >= start_L
    for k in range(MAX_DIGITS):
        in_number_L = in_number_L & (digits[at_L] < 10) & (at_L >= start_L)
        if not in_number_L.any():
            break
        value_L += np.where(in_number_L, digits[at_L], 0).astype(np.int64) * 10**k
        at_L = at_L - in_number_L
    # What stands before the number must be the separator, and before that the key.
    good_L = (at_L > start_L) & (at_L < newline_L - 1) & np.isin(chars[at_L], SEPARATORS)
    good_L &= digits[start_L] < 10
    if not good_L.all():
        line = int(np.flatnonzero(~good_L)[0])
        found = text[start_L[line] : newline_L[line]][:40].decode("ascii", "backslashreplace")
        raise ValueError(
            f"{path} line {lines_before + line + 1} is {found!r}, not a key and a byte position:"
            " delete the .idx file to have it rebuilt by a scan"
        )
    return value_L
