"""Kinds of dataset: each says where its images lie and what their labels are.

Shapes: I images of a source, C classes.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol, overload

import numpy as np

from kappaface_dist.data import index_cache
from kappaface_dist.data.recordio import RecordReader

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".pnm", ".gif")
)
MAX_CLASSES = 2**31
CHECKED_SUFFIX = ".kfchecked"


class Source(Protocol):
    """One file or folder of images; class numbers are shared by all sources of a dataset."""

    label_I: np.ndarray  # int32

    @property
    def class_names(self) -> Sequence[str] | None:
        """The names of the identities, by class, where the source has names."""
        ...

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; ValueError or OSError if they cannot be had."""
        ...

    def where(self, index: int) -> str:
        """How messages name one image."""
        ...


class RecordSource:
    """The images of one .rec file; identity records among them are left out.

    Raises:
        ValueError: the file is damaged, or a label is not a class number.
    """

    class_names: Sequence[str] | None = None

    def __init__(self, path: Path):
        self._path, self._stamp = path, _record_stamp(path)
        arrays = index_cache.load_or_build(path, self._stamp, lambda: _index_records(path))
        self.label_I = arrays["label"]
        self.reader = RecordReader(path, arrays["offset"])
        self._record_I = arrays["record"] if len(arrays["record"]) else range(len(self.label_I))

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; ValueError if the record is damaged."""
        return self.reader.read(self._record_I[index])

    def readable(self) -> np.ndarray | None:
        """Which images check_record.py could decode, bool [I]; None if it was not run."""
        kept = index_cache.recall(self._path, self._stamp, CHECKED_SUFFIX)
        return None if kept is None else np.unpackbits(kept["readable"])[: len(self.label_I)] > 0

    def keep_readable(self, readable_I: np.ndarray) -> None:
        """Keep the result of a check for later starts, where there is a place to write."""
        arrays = {"readable": np.packbits(readable_I)}
        index_cache.keep(self._path, self._stamp, arrays, CHECKED_SUFFIX)

    def where(self, index: int) -> str:
        """File, number of the record in it (identity records counted) and byte."""
        return self.reader.where(self._record_I[index])


class FolderSource:
    """A folder of images with a folder per identity; classes are numbered in the order of names.

    Raises:
        ValueError: there is no folder with images in it.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        stamp = _folder_stamp(folder)
        arrays = index_cache.load_or_build(folder, stamp, lambda: _index_folder(folder))
        self.label_I = arrays["label"]
        self.class_names: Sequence[str] = Strings(arrays["class_chars"], arrays["class_end"])
        self._names = Strings(arrays["name_chars"], arrays["name_end"])

    def read(self, index: int) -> bytes:
        """The bytes of one file; OSError if it cannot be read."""
        return self._path(index).read_bytes()

    def where(self, index: int) -> str:
        """The path of the file."""
        return str(self._path(index))

    def _path(self, index: int) -> Path:
        return self._folder / self.class_names[int(self.label_I[index])] / self._names[index]


class Strings(Sequence[str]):
    """Many file names in two arrays, instead of one Python object for each."""

    def __init__(self, chars: np.ndarray, ends: np.ndarray):
        self._chars = chars
        self._ends = ends

    @staticmethod
    def pack(names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """The two arrays for names: all their bytes, and where each ends."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return np.frombuffer(b"".join(encoded), dtype=np.uint8), ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        start = int(self._ends[at - 1]) if at else 0
        return os.fsdecode(self._chars[start : int(self._ends[at])].tobytes())


def list_identities(folder: Path) -> list[str]:
    """The names of the sub-folders, sorted; hidden ones are not identities."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")


def list_images(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the image files in a folder, and of the files that are not images, sorted."""
    images: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file() and entry.name[0] != ".":
                is_image = Path(entry.name).suffix.lower() in IMAGE_SUFFIXES
                (images if is_image else others).append(entry.name)
    return sorted(images), sorted(others)


def _index_records(path: Path) -> index_cache.Arrays:
    logger.info("indexing %s (once; later starts read its cache)", path)
    reader = RecordReader(path)
    label_R, is_image_R = reader.scan()
    if not is_image_R.any():
        raise ValueError(f"{path} holds no image, only identity records: rebuild the file")
    # NaN fails the first comparison; the identity records' labels mean something else.
    good_R = (label_R >= 0) & (label_R < MAX_CLASSES) & (label_R == np.floor(label_R))
    bad = np.flatnonzero(is_image_R & ~good_R)
    if len(bad):
        raise ValueError(
            f"{reader.where(int(bad[0]))} has label {label_R[bad[0]]}, labels are whole numbers"
            " from 0 on: rebuild the file"
        )
    # Records and images are numbered alike where there are no identity records: nothing to keep.
    record_I = np.flatnonzero(is_image_R) if not is_image_R.all() else np.empty(0)
    return {
        "offset": reader.offset_R,
        "label": label_R[is_image_R].astype(np.int32),
        "record": record_I.astype(np.int32),
    }


def _index_folder(folder: Path) -> index_cache.Arrays:
    class_names, names, counts, num_others = [], [], [], 0
    for identity in list_identities(folder):
        images, others = list_images(folder / identity)
        num_others += len(others)
        if images:
            class_names.append(identity)
            counts.append(len(images))
            names += images
    if not names:
        raise ValueError(
            f"{folder} has no sub-folder with images in it: a dataset is a .rec file or a folder"
            " with one folder of images per identity"
        )
    if num_others:
        logger.warning("%s: %d files are not images and are left out", folder, num_others)
    class_chars, class_end = Strings.pack(class_names)
    name_chars, name_end = Strings.pack(names)
    return {
        "label": np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        "class_chars": class_chars,
        "class_end": class_end,
        "name_chars": name_chars,
        "name_end": name_end,
    }


def _record_stamp(path: Path) -> str:
    """Changes whenever the .rec or its .idx is replaced."""
    stats = [file.stat() for file in (path, path.with_suffix(".idx")) if file.is_file()]
    return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)


def _folder_stamp(folder: Path) -> str:
    """Changes whenever an identity or a file in one is added, removed or renamed."""
    parts = [
        f"{identity}:{(folder / identity).stat().st_mtime_ns}"
        for identity in list_identities(folder)
    ]
    return sha256(os.fsencode("/".join(parts))).hexdigest()
