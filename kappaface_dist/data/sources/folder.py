"""A folder with one folder of images per identity, as a source of images.

An identity's folder is walked to its end: its photos may lie in folders inside it.
Shapes: I images of the source, F folders inside the identities' folders.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import overload

import numpy as np

from kappaface_dist.data.sources import index_cache
from kappaface_dist.data.sources.base import (
    OWN_FILES,
    LeftOut,
    list_dataset,
    list_identities,
    printable,
)

LAYOUT = {
    "label": "<i4",
    **{f"{name}_chars": "|u1" for name in ("class", "name", "folder")},
    **{f"{name}_end": "<i8" for name in ("class", "name", "folder")},
    "folder_time": "<i8",
    "left_out": "|u1",  # JSON
}
DOT, SLASH = b"./"


class FolderSource:
    """A folder of images with a folder per identity; classes are numbered in the order of names.

    Attributes:
        left_out: what lies in the folder and is no image of an identity.

    Raises:
        ValueError: there is no folder with images in it.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        arrays = index_cache.load_or_build(
            folder,
            _folder_stamp(folder),
            lambda: _index_folder(folder),
            lambda arrays: _check_index(arrays, folder),
        )
        self.label_I = arrays["label"]
        self.class_names: Sequence[str] = _strings(arrays, "class")
        self._names = _strings(arrays, "name")
        self.left_out = _left_out(arrays)

    def read(self, index: int) -> bytes:
        """The bytes of one file; OSError if it cannot be read."""
        return self._path(index).read_bytes()

    def where(self, index: int) -> str:
        """The path of the file."""
        return printable(self._path(index))

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
    dataset = list_dataset(folder)
    if not dataset.images:
        raise ValueError(
            f"{folder} has no sub-folder with images in it: a dataset is a .rec file or a folder"
            " with one folder of images per identity"
        )
    left_out = LeftOut.of([(printable(folder / name), why) for name, why in dataset.left_out])
    counts = [len(images) for images in dataset.images.values()]
    arrays = {
        "label": np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        "folder_time": _times(folder, dataset.folders),
        "left_out": np.frombuffer(json.dumps(asdict(left_out)).encode(), dtype=np.uint8),
    }
    names = [name for images in dataset.images.values() for name in images]
    for kind, texts in (("class", dataset.images), ("name", names), ("folder", dataset.folders)):
        arrays[f"{kind}_chars"], arrays[f"{kind}_end"] = Strings.pack(texts)
    return arrays


def _check_index(arrays: index_cache.Arrays, folder: Path) -> None:
    """ValueError or TypeError where a cached index is not one of this folder as it is now."""
    index_cache.check_layout(arrays, LAYOUT)
    label_I = arrays["label"]
    for kind, count in (("class", None), ("name", len(label_I)), ("folder", None)):
        chars, ends = arrays[f"{kind}_chars"], arrays[f"{kind}_end"]
        steps = np.diff(ends, prepend=0)
        if (steps <= 0).any() or steps.sum() != len(chars) or count not in (None, len(ends)):
            raise ValueError(f"its {kind} names do not fit together")
        # No part of a name begins with a dot: what is hidden is left out. So none leads elsewhere.
        first, after_slash = chars[ends - steps], chars[1:][chars[:-1] == SLASH]
        if np.isin(np.append(first, after_slash), (DOT, SLASH)).any():
            raise ValueError(f"one of its {kind} names leads out of the folder")
    num_classes = len(arrays["class_end"])
    # Images lie identity after identity, and each identity has some.
    steps = np.diff(label_I, prepend=-1, append=num_classes)
    if not ((steps == 0) | (steps == 1)).all():
        raise ValueError("its labels do not fit its names")
    folders = list(_strings(arrays, "folder"))
    if not np.array_equal(_times(folder, folders), arrays["folder_time"]):
        raise ValueError("a folder inside an identity's has changed")
    _left_out(arrays)


def _strings(arrays: index_cache.Arrays, kind: str) -> Strings:
    return Strings(arrays[f"{kind}_chars"], arrays[f"{kind}_end"])


def _left_out(arrays: index_cache.Arrays) -> LeftOut:
    found = json.loads(arrays["left_out"].tobytes())
    return LeftOut(dict(found["counts"]), [(where, why) for where, why in found["listed"]])


def _times(folder: Path, names: Iterable[str]) -> np.ndarray:
    """When each of the folders last changed, in nanoseconds; -1 for one that is gone: int64 [F]."""
    times = []
    for name in names:
        try:
            times.append((folder / name).stat().st_mtime_ns)
        except OSError:
            times.append(-1)
    return np.array(times, dtype=np.int64)


def _folder_stamp(folder: Path) -> str:
    """Changes whenever an identity or a file in one is added, removed or renamed."""
    with os.scandir(folder) as entries:
        loose = sorted(entry.name for entry in entries if not entry.name.startswith(OWN_FILES))
    parts = [
        f"{identity}:{(folder / identity).stat().st_mtime_ns}"
        for identity in list_identities(folder)
    ]
    return sha256(os.fsencode("/".join([*parts, *loose]))).hexdigest()
