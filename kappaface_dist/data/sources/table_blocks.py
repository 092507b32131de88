"""The blocks of rows of an Arrow or Parquet file: record batches, row groups."""

import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

MAX_KEPT_BYTES = 1 << 28  # of row groups


class ArrowBlocks:
    """The record batches of an Arrow file or stream, mapped into memory."""

    image = ""

    def __init__(self, path: Path):
        import pyarrow as pa

        mapped = pa.memory_map(str(path))
        try:
            self._table = pa.ipc.open_stream(mapped).read_all()
        except pa.ArrowInvalid:
            mapped.seek(0)
            self._table = pa.ipc.open_file(mapped).read_all()
        self._table.validate(full=True)  # pyarrow follows damaged offsets out of the memory
        self.schema = self._table.schema
        self.num_rows = [len(batch) for batch in self._table.to_batches()]

    def labels(self, name: str) -> Any:
        return self._table.column(name)

    def column(self, block: int) -> Any:
        return self._batches[block]

    @cached_property
    def _batches(self) -> list[Any]:
        return [batch.column(self.image) for batch in self._table.to_batches()]


class ParquetBlocks:
    """The row groups of a Parquet file, the last used of them in memory."""

    image = ""

    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        self._path = path
        self._file = pq.ParquetFile(path)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self.num_rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def labels(self, name: str) -> Any:
        return self._file.read([name]).column(name)

    def column(self, block: int) -> Any:
        import pyarrow as pa

        with self._lock:
            if block not in self._kept:
                try:
                    group = self._file.read_row_group(block, [self.image], use_threads=False)
                except (pa.ArrowException, OSError) as error:
                    raise ValueError(f"row group {block} is damaged ({words_of(error)})") from error
                if len(group) != self.num_rows[block]:
                    raise ValueError(f"row group {block} holds only {len(group)} images")
                self._kept[block] = group.column(self.image).combine_chunks()
                while len(self._kept) > 1 and self._size() > MAX_KEPT_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(block)
            return self._kept[block]

    def _size(self) -> int:
        return sum(column.nbytes for column in self._kept.values())


def words_of(error: Exception) -> str:
    """Of pyarrow's words; the lines below are about its source."""
    return str(error).strip().partition("\n")[0]
