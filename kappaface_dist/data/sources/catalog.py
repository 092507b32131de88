"""A dataset: its images, their labels, images per class; all of it found in the data itself.

Shapes: I images of the dataset, C classes.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from kappaface_dist.data.sources.base import LeftOut, Source
from kappaface_dist.data.sources.class_names import joined_names, number_by_names
from kappaface_dist.data.sources.finding import Part, Train, find_sources, open_sources
from kappaface_dist.data.sources.record import RecordSource
from kappaface_dist.data.sources.remote_store import CacheSettings, RemoteFile, masked

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Catalog:
    """The images of one or several sources, numbered through.

    Attributes:
        sources: where the images come from.
        first_image: number of the first image of each source.
        label_I: class of each image, int32.
        count_C: images of each class, int64; a class may have none.
        parts: the files or the folder that it is made of.
        merged: where it is several datasets (`merged.py`), what became of the classes of each.
        label_IL: all classes of each image, int32, where it has several and they are asked for
            (`label_vectors.py`); count_C then counts them all.
        names: gives the names of the identities in place of the sources.
    """

    sources: tuple[Source, ...]
    first_image: tuple[int, ...]
    label_I: np.ndarray
    count_C: np.ndarray
    parts: tuple[Part, ...] = ()
    merged: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    names: Callable[[], Sequence[str] | None] | None = None
    label_IL: np.ndarray | None = None

    @property
    def files(self) -> list[tuple[str, int | None]]:
        """Name and bytes of each file; a folder has no bytes of its own."""
        return [
            (part.name, part.num_bytes)
            if isinstance(part, RemoteFile)
            else (part.name, part.stat().st_size if part.is_file() else None)
            for part in self.parts
        ]

    @property
    def labels(self) -> np.ndarray:
        """label_IL, or label_I where there is one each."""
        return self.label_I if self.label_IL is None else self.label_IL

    @property
    def num_images(self) -> int:
        """Number of images of all sources."""
        return len(self.label_I)

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return len(self.count_C)

    @property
    def class_names(self) -> Sequence[str] | None:
        """The names of the identities, by class, where the data has them for every class."""
        if self.names is not None:
            return self.names()
        names = self.sources[0].class_names
        if names is None:
            return joined_names(self.sources, self.num_classes)
        if len(names) < self.num_classes:
            logger.warning(
                "%d names for %d classes: they are not used; %s is of other data",
                *(len(names), self.num_classes, "the file of names beside the dataset"),
            )
            return None
        return names

    @property
    def left_out(self) -> LeftOut:
        """What the sources have and do not give."""
        return sum((getattr(source, "left_out", LeftOut()) for source in self.sources), LeftOut())

    def read(self, index: int) -> bytes:
        """The encoded bytes of image index; ValueError or OSError if they cannot be had."""
        source, number = self._locate(index)
        return source.read(number)

    def checked(self) -> np.ndarray:
        """Images known to be readable from an earlier check_record.py: bool [I]."""
        out_I = np.zeros(self.num_images, dtype=bool)
        for source, first in zip(self.sources, self.first_image, strict=True):
            if isinstance(source, RecordSource) and (found := source.readable()) is not None:
                out_I[first : first + len(found)] = found
        return out_I

    def where(self, index: int) -> str:
        """How messages name image index: its file, and its record there."""
        source, number = self._locate(index)
        return source.where(number)

    def _locate(self, index: int) -> tuple[Source, int]:
        for source, first in zip(reversed(self.sources), reversed(self.first_image), strict=True):
            if index >= first:
                return source, index - first
        raise IndexError(index)


def open_catalog(
    train: Train,
    *,
    any_labels: bool = False,
    cache: CacheSettings | None = None,
    block: int = 0,
    found: Sequence[Part] | None = None,
) -> Catalog:
    """Open a dataset, and log what it has and does not give.

    Args:
        train: a .rec file, a WebDataset shard (.tar), a .parquet or .arrow file with the images in
            it; a list of them or a pattern such as "shards/*.rec" (parts of one dataset, in the
            order of their names, sharing their class numbers); a folder that holds train.rec or
            such files of one kind; or a folder of images with a folder per identity. Records and
            shards may lie at addresses in object storage: s3://, gs://, https://.
        any_labels: take labels that do not number the classes, for those who renumber them; there
            are no counts then.
        cache: where files of object storage go; None for the default place and size.
        block: images per block of the stream that will be read, 0 for a shuffle of all: whether a
            dataset that is larger than its cache can be read at all depends on it.
        found: what find_sources() found, where it was asked already.

    Raises:
        ValueError: nothing is there, a file is damaged, or its labels do not number the classes.
    """
    parts = tuple(find_sources(train) if found is None else found)
    sources = tuple(open_sources(parts, cache or CacheSettings(), block))
    number_by_names(sources)
    sizes = [len(source.label_I) for source in sources]
    # A single file's labels stay memory-mapped, shared by all processes of a machine.
    label_I = sources[0].label_I
    if len(sources) > 1:
        label_I = np.concatenate([source.label_I for source in sources])
        for source, end in zip(sources, np.cumsum(sizes), strict=True):
            source.label_I = label_I[end - len(source.label_I) : end]  # once is enough
    first_image = tuple(int(first) for first in np.cumsum([0, *sizes[:-1]]))
    catalog = Catalog(sources, first_image, label_I, np.empty(0, dtype=np.int64), parts)
    if not any_labels:
        below = np.flatnonzero(label_I < 0)
        if len(below):
            label = label_I[below[0]]
            raise ValueError(
                f"{catalog.where(int(below[0]))} has label {label}, labels are whole numbers from 0"
                f" on: tools/convert_record.py DATA OUT --renumber --drop-label={label} leaves out"
                f" the {(label_I == label).sum()} images that have it"
            )
        catalog = replace(catalog, count_C=count_images(label_I, name=masked(str(train))))
        files = [part for part in parts if isinstance(part, Path) and part.is_file()]
        for folder in {path.parent for path in files}:
            compare_property(folder / "property", catalog.num_classes)
    left_out = catalog.left_out
    if left_out.total:
        first = left_out.listed[0][0]
        logger.warning("%s: left out: %s (the first: %s)", masked(str(train)), left_out, first)
    return catalog


def count_images(label_I: np.ndarray, name: str) -> np.ndarray:
    """Images of each class, int64 [C].

    Raises:
        ValueError: most of the classes up to the largest label have no image.
    """
    num_classes = int(label_I.max()) + 1
    if num_classes > 2 * len(label_I):
        # One absurd label must not fill the memory with counts.
        count_C = np.empty(0, dtype=np.int64)
        num_used = len(np.unique(label_I))
    else:
        count_C = np.bincount(label_I).astype(np.int64)
        num_used = int(np.count_nonzero(count_C))
    if num_used * 2 < num_classes:
        raise ValueError(
            f"{name} has labels up to {num_classes - 1}, but only {num_used} classes with images:"
            " labels number the classes from 0 on, tools/convert_record.py DATA OUT --renumber"
            " writes it so"
        )
    if num_used < num_classes:
        num_empty = num_classes - num_used
        logger.warning(
            "%s: %d of %d classes have no image: tools/convert_record.py DATA OUT --renumber writes"
            " it without them",
            *(name, num_empty, num_classes),
        )
    return count_C


def check_trainable(catalog: Catalog, name: str, num_ranks: int) -> None:
    """ValueError where there is nothing to tell apart, or a rank would own no class."""
    num_used = int(np.count_nonzero(catalog.count_C))
    if num_used < 2:
        raise ValueError(
            f"{name} has images of {num_used} class ({catalog.num_images} in all), and training"
            " tells classes apart: give it two at least"
        )
    if catalog.num_classes < num_ranks:
        raise ValueError(
            f"{name} has {catalog.num_classes} classes for {num_ranks} ranks, and each must own one"
            " at least: start fewer processes"
        )


def compare_property(path: Path, num_classes: int) -> None:
    """Warn if the `property` file beside a record ("classes,height,width") says otherwise."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if text.split(",")[0].strip() != str(num_classes):
        logger.warning(
            "%s says %r, but the labels number %d classes: the labels are used; correct the file,"
            " or check that it belongs to this record",
            path,
            text[:60],
            num_classes,
        )
