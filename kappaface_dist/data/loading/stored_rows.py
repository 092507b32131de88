"""Embeddings of a dataset's images that another network made, kept in a Parquet file beside it.

Row i is image i of the dataset: columns image, embedding and, where images are mirrored, mirrored,
each a list of T float32 of unit length, or NaN where there is none. Metadata say of what they are.
A run takes single rows of it in any order, which Parquet has no way for: at the first start they
are written once more as float16, to be mapped into memory by all processes of a machine.
Shapes: I images of the dataset, B of this rank, T numbers of an embedding.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from kappaface_dist.data.sources import index_cache
from kappaface_dist.whole_files import whole_file

PREFIX = "kappaface."  # of our keys among the file's metadata
COLUMNS = ("embedding", "mirrored")
ROWS_AT_A_TIME = 8192


@dataclass(frozen=True)
class StoredRows:
    """Attributes:
    upright_IT, mirrored_IT: of the images and of their mirror images, float16; None: not there.
    facts: the file's metadata.
    """

    upright_IT: np.ndarray
    mirrored_IT: np.ndarray | None
    facts: Mapping[str, str]

    def of(self, image_B: np.ndarray, mirrored_B: np.ndarray) -> np.ndarray:
        """Embeddings, float16 [B, T], of images as they are seen."""
        row_BT = self.upright_IT[image_B]
        if mirrored_B.any():
            assert self.mirrored_IT is not None
            row_BT[mirrored_B] = self.mirrored_IT[image_B[mirrored_B]]
        return row_BT


def write_rows(
    path: Path, parts: Iterator[tuple[np.ndarray, np.ndarray | None]], facts: Mapping[str, str]
) -> None:
    """Write a file, whole or not at all.

    Args:
        parts: (embeddings, those of the mirror images or None) of some images after others.

    Raises:
        RuntimeError: pyarrow is not installed.
    """
    pa, parquet = _pyarrow(path)
    metadata = {f"{PREFIX}{name}": text for name, text in facts.items()}
    with whole_file(path) as unfinished, ExitStack() as stack:
        writer, first = None, 0
        for rows in parts:
            table: dict[str, Any] = {"image": np.arange(first, first + len(rows[0]))}
            for name, row_XT in zip(COLUMNS, rows, strict=True):
                if row_XT is not None:
                    flat = pa.array(row_XT.astype(np.float32).ravel())
                    table[name] = pa.FixedSizeListArray.from_arrays(flat, row_XT.shape[1])
            part = pa.table(table).replace_schema_metadata(metadata)
            if writer is None:
                writer = stack.enter_context(parquet.ParquetWriter(unfinished, part.schema))
            writer.write_table(part)
            first += len(rows[0])


def open_rows(path: Path) -> StoredRows:
    """Open a file.

    Raises:
        ValueError: it is none of ours, or damaged.
        RuntimeError: pyarrow is not installed.
    """
    pa, parquet = _pyarrow(path)
    if not path.is_file():
        raise ValueError(f"there is no {path}: python tools/cache_teacher.py CONFIG writes it")
    try:
        file = parquet.ParquetFile(path)
        found = {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}
        facts = {k.removeprefix(PREFIX): v for k, v in found.items() if k.startswith(PREFIX)}
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        if not facts or COLUMNS[0] not in columns:
            raise ValueError(
                f"{path} is no file of a teacher's embeddings: python tools/cache_teacher.py CONFIG"
                " writes one"
            )
        arrays = index_cache.load_or_build(
            path,
            index_cache.file_stamp(path),
            lambda: {name: _read(file, name) for name in columns},
        )
    except pa.ArrowException as error:
        raise ValueError(f"{path} is damaged ({error}): write it anew") from error
    return StoredRows(arrays[COLUMNS[0]], arrays.get(COLUMNS[1]), facts)


def _read(file: Any, name: str) -> np.ndarray:
    """A column, float16 [I, T], some rows at a time."""
    width = file.schema_arrow.field(name).type.list_size
    row_IT = np.empty((file.metadata.num_rows, width), np.float16)
    first = 0
    for batch in file.iter_batches(ROWS_AT_A_TIME, columns=[name]):
        rows = batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        row_IT[first : first + len(rows)] = rows
        first += len(rows)
    return row_IT


def _pyarrow(path: Path) -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RuntimeError(
            f"{path} needs pyarrow: pip install 'kappaface_dist[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet
