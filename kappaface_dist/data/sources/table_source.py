"""Hugging Face datasets and Parquet files with images inside, through pyarrow.

A column "image" (bytes, a list of them, or Hugging Face's struct of bytes and path) and a column
"label" (whole numbers of any type, or names); other names will do where only one column is of bytes
or of integers. Names number the classes in their order, over all files of a dataset.
    .arrow    what datasets.save_to_disk() writes; memory-mapped, any image at once
    .parquet  images can only be had by the row group: the last few are kept, so set
              data.block_shuffle, or turn it into a record with tools/convert_record.py
Shapes: I images of a file.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.data.sources.base import MAX_CLASSES
from kappaface_dist.data.sources.class_names import read_class_names
from kappaface_dist.text_files import shown

MAX_KEPT_BYTES = 1 << 28  # of row groups


class TableSource:
    """The images of one .arrow or .parquet file.

    Raises:
        ValueError: the file is damaged, or has no such columns.
        RuntimeError: pyarrow is not installed.
    """

    def __init__(self, path: Path):
        try:
            import pyarrow as pa
        except ImportError as error:
            raise RuntimeError(
                f"{path} is read with pyarrow: pip install 'kappaface_dist[parquet]'"
            ) from error
        self._path = path
        try:
            self._blocks: _ArrowBlocks | _ParquetBlocks = (
                _ArrowBlocks(path) if path.suffix == ".arrow" else _ParquetBlocks(path)
            )
            image, label = find_columns(self._blocks.schema, str(path))
            self._blocks.image = image
            column = self._blocks.labels(label)
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
        except (pa.ArrowException, OSError) as error:
            text = f"{path} cannot be read ({shown(str(error))}): copy or rebuild it"
            raise ValueError(text) from error
        if column.null_count:
            raise ValueError(f"{path}: {column.null_count} rows have no {label}: remove them")
        if len(column) == 0:
            raise ValueError(f"{path} has no row: rebuild it, or leave it out")
        if len(column) != (rows := sum(self._blocks.num_rows)):
            raise ValueError(f"{path} has {len(column)} labels for {rows} rows: copy or rebuild it")
        self.class_names: Sequence[str] | None
        self.named_by_text = _holds_text(column.type)
        if self.named_by_text:
            names, self.label_I = np.unique(column.to_numpy().astype(str), return_inverse=True)
            self.class_names = names.tolist()
        else:
            numbers = column.to_numpy()
            wide = np.float64 if numbers.dtype.kind == "f" else numbers.dtype
            self.label_I = self._numbers(numbers.astype(wide))
            self.class_names = _class_names(self._blocks.schema, label) or read_class_names(path)
        self.label_I = self.label_I.astype(np.int32)
        self._first_row = np.cumsum([0, *self._blocks.num_rows])

    def _numbers(self, label_I: np.ndarray) -> np.ndarray:
        # NaN fails the first comparison; those below 0 are junk that can be dropped.
        good_I = (label_I > -MAX_CLASSES) & (label_I < MAX_CLASSES) & (label_I == np.floor(label_I))
        bad = np.flatnonzero(~good_I)
        if len(bad):
            raise ValueError(
                f"{self.where(int(bad[0]))} has label {label_I[bad[0]]}, labels are whole numbers"
                " from 0 on: rebuild the file"
            )
        return label_I

    def number_by(self, names: Sequence[str]) -> None:
        """Number the classes by the sorted names of all files of a dataset, not of this alone."""
        assert self.class_names is not None
        self.label_I = np.searchsorted(names, self.class_names)[self.label_I].astype(np.int32)
        self.class_names = names

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; ValueError if there are none."""
        block = int(np.searchsorted(self._first_row, index, side="right")) - 1
        value = self._blocks.column(block)[index - int(self._first_row[block])].as_py()
        payload = value.get("bytes") if isinstance(value, dict) else value
        if not payload:
            raise ValueError("the row has no image bytes")
        # Lists of numbers, of which those of int8 are below 0 from 128 on.
        return payload if isinstance(payload, bytes) else bytes(number & 255 for number in payload)

    def where(self, index: int) -> str:
        """The file and the row in it."""
        return f"{self._path} row {index}"


def find_columns(schema: Any, name: str) -> tuple[str, str]:
    """The names of the columns with the images and with the labels.

    Raises:
        ValueError: there is no such column, or several could be meant.
    """
    import pyarrow as pa

    def is_label(kind: Any) -> bool:
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        return pa.types.is_integer(values) or pa.types.is_floating(values) or _holds_text(values)

    def is_image(kind: Any) -> bool:
        return _holds_bytes(kind) or _holds_byte_lists(kind)

    found = []
    for wanted, what, fits, fits_unnamed in (
        ("image", "encoded images", is_image, _holds_bytes),
        ("label", "class numbers", is_label, pa.types.is_integer),
    ):
        if wanted in schema.names:
            kind = schema.field(wanted).type
            if not fits(kind):
                raise ValueError(
                    f"{name} has a column {wanted} of the type {kind}, expected {what}"
                    f" ({'bytes' if wanted == 'image' else 'whole numbers, or names'}): rebuild it"
                )
            found.append(wanted)
            continue
        fitting = [field.name for field in schema if fits_unnamed(field.type)]
        if len(fitting) != 1:
            raise ValueError(
                f"{name} has the columns {', '.join(schema.names)}: rename the one with the"
                f" {what} to {wanted!r}"
            )
        found.append(fitting[0])
    return found[0], found[1]


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_bytes(kind.field(at).type)
    names = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")
    # binary_view came with pyarrow 16.
    return any(getattr(pa.types, name, lambda kind: False)(kind) for name in names)


def _holds_byte_lists(kind: Any) -> bool:
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_kind(kind) for is_kind in lists):
        return False
    return pa.types.is_uint8(kind.value_type) or pa.types.is_int8(kind.value_type)


def _holds_text(kind: Any) -> bool:
    import pyarrow as pa

    names = ("is_string", "is_large_string", "is_string_view")
    return any(getattr(pa.types, name, lambda kind: False)(kind) for name in names)


class _ArrowBlocks:
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


class _ParquetBlocks:
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
                    raise ValueError(f"row group {block}: {shown(str(error))}") from error
                if len(group) != self.num_rows[block]:
                    raise ValueError(f"row group {block} holds only {len(group)} images")
                self._kept[block] = group.column(self.image).combine_chunks()
                while len(self._kept) > 1 and self._size() > MAX_KEPT_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(block)
            return self._kept[block]

    def _size(self) -> int:
        return sum(column.nbytes for column in self._kept.values())


def _class_names(schema: Any, label: str) -> list[str] | None:
    """The names that Hugging Face keeps with a column of class numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
