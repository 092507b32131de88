"""Writes RecordIO files, byte for byte as MXNet does.

A record is a header (flag, label, key, 0) followed by the payload, cut into parts wherever one of
its words equals the magic number. So a magic number at a multiple of four bytes always starts a
part, which is what lets a reader find the records of a file without its .idx.
"""

import struct
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from kappaface_dist.data.sources.class_names import write_class_names
from kappaface_dist.whole_files import whole_file

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
# The two words before each part are MAGIC and (cflag << 29 | length in bytes).
CFLAG_WHOLE, CFLAG_FIRST, CFLAG_MIDDLE, CFLAG_LAST = range(4)
CFLAG_SHIFT = 29
MAX_LABEL = 1 << 24  # a 32-bit float holds every whole number up to here
MAX_PART_BYTES = (1 << CFLAG_SHIFT) - 1
# flag (0: the label is the next field; n: n float labels precede the payload), label, key, unused.
RECORD_HEADER = struct.Struct("<IfQQ")


class RecordWriter:
    """Writes prefix.rec and prefix.idx; use it as a context manager.

    The files get their names when the block is left without an error: what was cut short is never
    taken for a dataset.
    """

    def __init__(self, prefix: str | Path):
        self.record_path = Path(f"{prefix}.rec")
        self.index_path = Path(f"{prefix}.idx")
        self.num_written = 0

    def __enter__(self) -> "RecordWriter":
        with ExitStack() as files:
            # The last ends first: both are closed before the record, then its index, is named.
            index = files.enter_context(whole_file(self.index_path))
            record = files.enter_context(whole_file(self.record_path))
            self._index = files.enter_context(index.open("w", encoding="ascii", newline="\n"))
            self._record = files.enter_context(record.open("wb"))
            self._files = files.pop_all()
        return self

    def write(self, label: float, payload: bytes) -> None:
        """Append one image; its key is the number of images before it.

        Raises:
            ValueError: the label is not a class number that a 32-bit float holds exactly (they run
                to 16,777,216), or the payload is over 512 MB.
        """
        if not (0 <= label <= MAX_LABEL and label == int(label)):
            raise ValueError(
                f"label {label} of record {self.num_written} cannot be written: RecordIO labels are"
                " 32-bit floats, so class numbers are whole and run from 0 to"
                f" {MAX_LABEL}; for more classes write shards with tools/convert_record.py OUT.tar"
            )
        body = RECORD_HEADER.pack(0, label, self.num_written, 0) + payload
        if len(body) > MAX_PART_BYTES:
            raise ValueError(
                f"record {self.num_written} has {len(payload)} bytes, RecordIO holds at most"
                f" {MAX_PART_BYTES - RECORD_HEADER.size}: store a smaller image"
            )
        self._index.write(f"{self.num_written}\t{self._record.tell()}\n")
        self._record.write(encode_record(body))
        self.num_written += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.__exit__(kind, error, traceback)
        if kind is None:
            # Those of a record that was there before; who knows the new ones writes them next.
            write_class_names(self.record_path, None)


def encode_record(body: bytes) -> bytes:
    """The parts of one record: body without the words that equal MAGIC, framed and padded."""
    pieces = []
    start = 0
    found = body.find(MAGIC_BYTES)
    while found >= 0:
        if found % 4 == 0:
            pieces.append(_frame(CFLAG_FIRST if start == 0 else CFLAG_MIDDLE, body[start:found]))
            start = found + 4
            found = body.find(MAGIC_BYTES, start)
        else:
            found = body.find(MAGIC_BYTES, found + 1)
    pieces.append(_frame(CFLAG_LAST if start else CFLAG_WHOLE, body[start:]))
    return b"".join(pieces)


def _frame(cflag: int, part: bytes) -> bytes:
    return (
        struct.pack("<II", MAGIC, cflag << CFLAG_SHIFT | len(part)) + part + bytes(-len(part) % 4)
    )
