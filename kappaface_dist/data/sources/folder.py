"""A folder with one folder of images per identity, as a source of images.

Shapes: I images of the source.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import overload

import numpy as np

from kappaface_dist.data.sources import index_cache
from kappaface_dist.data.sources.base import list_identities, list_images

logger = logging.getLogger(__name__)


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


def _folder_stamp(folder: Path) -> str:
    """Changes whenever an identity or a file in one is added, removed or renamed."""
    parts = [
        f"{identity}:{(folder / identity).stat().st_mtime_ns}"
        for identity in list_identities(folder)
    ]
    return sha256(os.fsencode("/".join(parts))).hexdigest()
