"""Embeddings of a dataset as files that other programs read: .npy with a list, or Parquet.

Shapes: I images, D embedding size.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kappaface_dist.data.sources.base import list_identities, list_images
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.evaluation.embedding.store import StoredEmbeddings
from kappaface_dist.evaluation.sets.face_lists import images_below
from kappaface_dist.whole_files import whole_file


@dataclass(frozen=True)
class LabelledImages:
    """Images to embed.

    Attributes:
        read: the encoded bytes of image i; ValueError or OSError if they cannot be had.
        where: its file, or its record in a file.
        label: its class; None where the images have none.
    """

    count: int
    read: Callable[[int], bytes]
    where: Callable[[int], str]
    label: Callable[[int], int | None]


def open_images(place: str | Path) -> LabelledImages:
    """Open a dataset as training does, or any folder with images in it or below.

    Raises:
        ValueError: there is no image.
    """
    folder = Path(place)
    loose = folder.is_dir() and not (folder / "train.rec").is_file()
    if loose and not any(list_images(folder / name)[0] for name in list_identities(folder)):
        paths = images_below(folder)
        return LabelledImages(
            len(paths), lambda i: paths[i].read_bytes(), lambda i: str(paths[i]), lambda i: None
        )
    catalog = open_catalog(str(place))
    return LabelledImages(
        catalog.num_images, catalog.read, catalog.where, lambda i: int(catalog.label_I[i])
    )


def write_npy(folder: Path, stored: StoredEmbeddings, dataset: LabelledImages) -> list[Path]:
    """embeddings.npy, written part by part, and images.jsonl with a line per row.

    An image without an embedding has a row of NaN, and "problem" says why; null for the others.
    """
    target, listed = folder / "embeddings.npy", folder / "images.jsonl"
    problems = dict(stored.unreadable)
    with whole_file(target) as unfinished:
        array: np.ndarray | None = None
        for first, rows in unit_parts(stored):
            if array is None:
                shape = (stored.count, rows.shape[1])
                array = np.lib.format.open_memmap(unfinished, "w+", np.float32, shape)
            array[first : first + len(rows)] = rows
        assert isinstance(array, np.memmap)
        array.flush()
        with whole_file(listed) as lines, lines.open("w", encoding="utf-8") as file:
            for i in range(dataset.count):
                where = dataset.where(i)
                line = {"image": where, "label": dataset.label(i), "problem": problems.get(where)}
                file.write(json.dumps(line) + "\n")
    return [target, listed]


def write_parquet(folder: Path, stored: StoredEmbeddings, dataset: LabelledImages) -> list[Path]:
    """embeddings.parquet: columns image, label, problem, embedding (a list of D float32).

    An image without an embedding has one of NaN, and problem says why; null for the others.

    Raises:
        RuntimeError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise RuntimeError(
            "Parquet files are written with pyarrow: pip install 'kappaface_dist[parquet]'"
        ) from error
    target = folder / "embeddings.parquet"
    problems = dict(stored.unreadable)
    with whole_file(target) as unfinished, ExitStack() as stack:
        writer = None
        for first, rows in unit_parts(stored):
            numbers = range(first, first + len(rows))
            values = pa.array(rows.ravel(), type=pa.float32())
            table = pa.table(
                {
                    "image": pa.array([dataset.where(i) for i in numbers], type=pa.string()),
                    "problem": pa.array(
                        [problems.get(dataset.where(i)) for i in numbers], type=pa.string()
                    ),
                    "label": pa.array([dataset.label(i) for i in numbers], type=pa.int64()),
                    "embedding": pa.FixedSizeListArray.from_arrays(values, rows.shape[1]),
                }
            )
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(unfinished, table.schema))
            writer.write_table(table)
    return [target]


def unit_parts(stored: StoredEmbeddings) -> Iterator[tuple[int, np.ndarray]]:
    """The parts of the store with rows of unit length; rows of NaN stay."""
    for first, rows in stored.parts():
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        yield first, rows / np.where(norm > 0, norm, 1.0)
