"""Read and write RecordIO files without MXNet.

A .rec file is a chain of records (recordio_writer.py has their layout). Reading needs only where
each begins: from the .idx file, or from one scan for the magic number. Nothing is kept per record
but one number in an array, so tens of millions open in seconds.
Shapes: R records of a file.
"""

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kappaface_dist.data.sources.record_index import find_records, scan_starts
from kappaface_dist.data.sources.recordio_writer import (
    CFLAG_FIRST,
    CFLAG_LAST,
    CFLAG_MIDDLE,
    CFLAG_SHIFT,
    CFLAG_WHOLE,
    MAGIC,
    MAGIC_BYTES,
    MAX_PART_BYTES,
    RECORD_HEADER,
    RecordWriter,
)

__all__ = ["RecordReader", "RecordScan", "RecordWriter"]

# The two words of a part, then flag and label of the record.
FIRST_WORDS = struct.Struct("<IIIf")
PART_WORDS = struct.Struct("<II")
WHOLE_HEADER_BYTES = PART_WORDS.size + RECORD_HEADER.size
SCAN_CHUNK = 1 << 18


class RecordScan(NamedTuple):
    """What the headers of all records say, in file order."""

    label_R: np.ndarray  # float32; the first number of a vector label
    is_image_R: np.ndarray  # bool; False for the records that describe identities (no payload)


class RecordReader:
    """The records of one .rec file, in the order in which they lie in the file.

    Args:
        path: the .rec file; if there is no .idx beside it, the file is scanned.
        offset_R: where the records begin, where that is known already.

    Attributes:
        num_unlisted: records of the file that its .idx does not list; known after a scan.

    Raises:
        ValueError: there is no such file, it is empty or cut off, or its .idx is malformed.
    """

    def __init__(self, path: str | Path, offset_R: np.ndarray | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"there is no record file {self.path}: check the path")
        self.num_bytes = self.path.stat().st_size
        if self.num_bytes == 0:
            raise ValueError(f"{self.path} is empty: copy or rebuild it")
        if self.num_bytes % 4:
            raise ValueError(
                f"{self.path} has {self.num_bytes} bytes, but RecordIO files are a multiple of 4"
                " bytes long: it is cut off or not a record file, copy or rebuild it"
            )
        with self.path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._words = np.frombuffer(self._map, dtype="<u4")
        self.num_unlisted = 0
        self.offset_R = find_records(self.path, self._words) if offset_R is None else offset_R

    def __len__(self) -> int:
        return len(self.offset_R)

    def read(self, record: int) -> bytes:
        """The payload of one record (encoded image bytes, empty for an identity record).

        Raises:
            ValueError: no intact record begins where the index says.
        """
        offset = int(self.offset_R[record])
        if offset + WHOLE_HEADER_BYTES <= self.num_bytes:
            magic, part, flag, _ = FIRST_WORDS.unpack_from(self._map, offset)
            end = offset + PART_WORDS.size + part
            start = offset + WHOLE_HEADER_BYTES + 4 * flag
            # cflag is 0 for a whole record, so `part` is its length and nothing else.
            if magic == MAGIC and part <= MAX_PART_BYTES and start <= end <= self.num_bytes:
                return self._map[start:end]
        body, _ = self._assemble(record)
        return body[RECORD_HEADER.size + 4 * RECORD_HEADER.unpack_from(body)[0] :]

    def header(self, record: int) -> tuple[float, ...]:
        """The label of one record: one number, or all those of a vector label.

        Raises:
            ValueError: no intact record begins where the index says.
        """
        body, _ = self._assemble(record)
        flag, label, _, _ = RECORD_HEADER.unpack_from(body)
        return struct.unpack_from(f"<{flag}f", body, RECORD_HEADER.size) if flag else (label,)

    def scan(self) -> RecordScan:
        """Check that the records fill the file without a gap, and read the labels of all.

        An .idx may list some of the file's records only: a filter that someone made. The others
        are counted in num_unlisted.

        Raises:
            ValueError: the file is damaged, or its .idx does not fit; the message names the record.
        """
        begin_R = self.offset_R
        try:
            return self._scan(begin_R)
        except ValueError:
            if not self.path.with_suffix(".idx").is_file():
                raise
            begin_R = scan_starts(self._words)
            listed = np.isin(self.offset_R, begin_R).all() and (np.diff(self.offset_R) > 0).all()
            if not listed or len(begin_R) == len(self):
                raise
        self.num_unlisted = len(begin_R) - len(self)
        return self._scan(begin_R)

    def labels(self, record_A: np.ndarray) -> np.ndarray:
        """The labels of some records, float32; NaN where none with an image begins."""
        magic_A, part_A, flag_A, label_A = self._first_words(self.offset_R[record_A])
        is_image_A = (flag_A == 0) | (part_A > RECORD_HEADER.size + 4 * flag_A.astype(np.int64))
        return np.where((magic_A == MAGIC) & is_image_A, label_A, np.float32(np.nan))

    def where(self, record: int) -> str:
        """How messages name a record: its number in the file, and its byte."""
        return f"{self.path} record {record} (byte {int(self.offset_R[record])})"

    def _scan(self, begin_R: np.ndarray) -> RecordScan:
        """begin_R: where all records of the file begin, those that are not listed too."""
        if begin_R[0] != 0:
            raise ValueError(
                f"the first record of {self.path} should begin at byte 0, but {self._source()} says"
                f" {begin_R[0]}: {self._remedy()}"
            )
        label_R = np.empty(len(self), dtype=np.float32)
        is_image_R = np.empty(len(self), dtype=bool)
        end_R = np.append(begin_R[1:], self.num_bytes)
        if begin_R is not self.offset_R:
            end_R = end_R[np.searchsorted(begin_R, self.offset_R)]
        for first in range(0, len(self), SCAN_CHUNK):
            chunk = slice(first, min(first + SCAN_CHUNK, len(self)))
            label_R[chunk], is_image_R[chunk] = self._scan_chunk(chunk, end_R[chunk])
        return RecordScan(label_R, is_image_R)

    def _first_words(self, offset_R: np.ndarray) -> tuple[np.ndarray, ...]:
        """Magic number, length of the first part, flag and label of records."""
        word_R = offset_R >> 2
        last = len(self._words) - 1
        magic_R, part_R, flag_R, label_R = (
            self._words[np.minimum(word_R + k, last)] for k in range(4)
        )
        # A vector label precedes the payload; its first number is the class.
        label_R = np.where(
            flag_R > 0, self._words[np.minimum(word_R + WHOLE_HEADER_BYTES // 4, last)], label_R
        ).view(np.float32)
        return magic_R, part_R, flag_R, label_R

    def _scan_chunk(self, chunk: slice, next_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        offset_R = self.offset_R[chunk]
        magic_R, part_R, flag_R, label_R = self._first_words(offset_R)
        least_R = RECORD_HEADER.size + 4 * flag_R.astype(np.int64)
        end_R = offset_R + PART_WORDS.size + (part_R.astype(np.int64) + 3 & ~3)
        is_image_R = (flag_R == 0) | (part_R > least_R)
        intact_R = (magic_R == MAGIC) & (offset_R & 3 == 0) & (part_R <= MAX_PART_BYTES)
        intact_R &= (part_R >= least_R) & (end_R == next_R)
        # Records in several parts are few: one by one. A damaged one gets its message here, too.
        for i in np.flatnonzero(~intact_R):
            body, end = self._assemble(chunk.start + int(i))
            if end != next_R[i]:
                raise ValueError(
                    f"{self.where(chunk.start + int(i))} ends at byte {end}, but {self._source()}"
                    f" has the next one at byte {next_R[i]}: {self._remedy()}"
                )
            flag, label, _, _ = RECORD_HEADER.unpack_from(body)
            if flag:
                (label,) = struct.unpack_from("<f", body, RECORD_HEADER.size)
            label_R[i] = label
            is_image_R[i] = flag == 0 or len(body) > RECORD_HEADER.size + 4 * flag
        return label_R, is_image_R

    def _assemble(self, record: int) -> tuple[bytes, int]:
        """The body (header and payload) of a record in any number of parts, and the byte after it.

        Every way in which a record can be malformed ends in a ValueError here.
        """
        at = int(self.offset_R[record])
        if at % 4 or not 0 <= at <= self.num_bytes - PART_WORDS.size:
            raise ValueError(
                f"{self._source()} has a record at byte {at}, where none of {self.path}"
                f" ({self.num_bytes} bytes) can begin: {self._remedy()}"
            )
        pieces: list[bytes] = []
        while True:
            if at + PART_WORDS.size > self.num_bytes:
                raise ValueError(
                    f"{self.path} is cut off: {self.where(record)} goes on at byte {at}, the file"
                    f" ends at {self.num_bytes}: copy or rebuild it"
                )
            magic, part = PART_WORDS.unpack_from(self._map, at)
            cflag, length = part >> CFLAG_SHIFT, part & MAX_PART_BYTES
            expected = (CFLAG_MIDDLE, CFLAG_LAST) if pieces else (CFLAG_WHOLE, CFLAG_FIRST)
            if magic != MAGIC or cflag not in expected:
                raise ValueError(
                    f"{self.where(record)} is damaged: at byte {at} there is no"
                    f" {'further part of it' if pieces else 'start of a record'}: {self._remedy()}"
                )
            start = at + PART_WORDS.size
            at = start + (length + 3 & ~3)
            if at > self.num_bytes:
                raise ValueError(
                    f"{self.path} is cut off: {self.where(record)} ends at byte {at}, the file at"
                    f" {self.num_bytes}: copy or rebuild it"
                )
            pieces.append(self._map[start : start + length])
            if cflag in (CFLAG_WHOLE, CFLAG_LAST):
                break
        body = MAGIC_BYTES.join(pieces)
        header_bytes = RECORD_HEADER.size
        if len(body) >= header_bytes:
            header_bytes += 4 * RECORD_HEADER.unpack_from(body)[0]
        if len(body) < header_bytes:
            raise ValueError(
                f"{self.where(record)} has {len(body)} bytes, its header alone needs"
                f" {header_bytes}: {self._remedy()}"
            )
        return body, at

    def _source(self) -> str:
        index = self.path.with_suffix(".idx")
        return str(index) if index.is_file() else "the scan of the file"

    def _remedy(self) -> str:
        if self.path.with_suffix(".idx").is_file():
            return "delete the .idx file to have it rebuilt by a scan, or copy both files again"
        return "copy or rebuild the file"
