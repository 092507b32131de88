"""Kinds of dataset: each says where its images lie and what their labels are.

Shapes: I images of a source, C classes.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

MAX_CLASSES = 2**31  # labels are int32
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"),
        *(".pbm", ".pgm", ".ppm", ".pnm", ".gif"),
    )
)
MAX_LISTED = 1000
WINDOW_BLOCKS = 64  # of a stream that is read by the block: so many are mixed with each other
# Why something in a folder is not taken.
NO_IMAGE = "not an image by its name"
HIDDEN = "hidden"
NO_TARGET = "a link to nothing"
NO_FILE = "neither file nor folder"
LOOP = "a link to a folder that it lies in"
LOOSE = "in no identity's folder"
NO_PHOTO = "a folder without a photo"
OWN_FILES = ".kf"  # caches of ours


@dataclass(frozen=True)
class LeftOut:
    """What a source has and does not give.

    Attributes:
        counts: how much of it, by the reason.
        listed: (where, why), the first thousand.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    listed: Sequence[tuple[str, str]] = ()

    @staticmethod
    def of(found: Sequence[tuple[str, str]]) -> "LeftOut":
        """From the whole list of (where, why)."""
        return LeftOut(dict(Counter(why for _, why in found)), found[:MAX_LISTED])

    def __add__(self, other: "LeftOut") -> "LeftOut":
        """Both together."""
        listed = [*self.listed, *other.listed][:MAX_LISTED]
        return LeftOut(dict(Counter(self.counts) + Counter(other.counts)), listed)

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        """Counts and reasons, for a message."""
        counts = [f"{why}: {count}" for why, count in sorted(self.counts.items())]
        return ", ".join(counts) or "nothing else"


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


def printable(path: Path) -> str:
    """A path for messages: bytes of it that are no text cannot be printed."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def list_identities(folder: Path) -> list[str]:
    """The names of the sub-folders, sorted; hidden ones are not identities."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")


def list_images(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The image files in a folder and all folders below it, and (file, why) of what is none.

    Both are sorted, with names relative to the folder.
    """
    content = list_content(folder)
    return content.images, content.left_out


class Content(NamedTuple):
    """What lies in a folder and in all folders below it, sorted, with names relative to it."""

    images: list[str]
    left_out: list[tuple[str, str]]  # (file, why)
    folders: list[str]


def list_content(folder: Path) -> Content:
    """Walk a folder to its end; links are followed, but to no folder that holds this one."""
    content = Content([], [], [])
    _walk(folder, "", (_identity(folder), *_above(folder)), content)
    for names in content:
        names.sort()
    return content


class Dataset(NamedTuple):
    """A folder with a folder per identity; names are relative to it."""

    images: dict[str, list[str]]  # of each identity, relative to its folder; both sorted
    left_out: list[tuple[str, str]]  # (file, why)
    folders: list[str]  # inside the identities' folders


def list_dataset(folder: Path) -> Dataset:
    """All images, and all that is none or lies in no identity's folder."""
    dataset = Dataset({}, [], [])
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                if not entry.name.startswith(OWN_FILES):
                    dataset.left_out.append((entry.name, HIDDEN))
            elif not entry.is_dir():
                why = LOOSE if entry.is_file() else _why_no_file(entry)
                dataset.left_out.append((entry.name, why))
    above = (_identity(folder), *_above(folder))
    for identity in list_identities(folder):
        if _identity(folder / identity) in above:
            dataset.left_out.append((identity, LOOP))
            continue
        images, left_out, folders = list_content(folder / identity)
        if images:
            dataset.images[identity] = images
        else:
            dataset.left_out.append((identity, NO_PHOTO))
        dataset.left_out.extend((f"{identity}/{name}", why) for name, why in left_out)
        dataset.folders.extend(f"{identity}/{name}" for name in folders)
    dataset.left_out.sort()
    return dataset


def _walk(folder: Path, inside: str, above: tuple[tuple[int, int], ...], content: Content) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = inside + entry.name
            if entry.name.startswith("."):
                content.left_out.append((name, HIDDEN))
            elif entry.is_dir():
                this = _identity(entry.path)
                if this in above:
                    content.left_out.append((name, LOOP))
                else:
                    content.folders.append(name)
                    _walk(Path(entry.path), f"{name}/", (*above, this), content)
            elif not entry.is_file():
                content.left_out.append((name, _why_no_file(entry)))
            elif Path(name).suffix.lower() in IMAGE_SUFFIXES:
                content.images.append(name)
            else:
                content.left_out.append((name, NO_IMAGE))


def _above(folder: Path) -> tuple[tuple[int, int], ...]:
    """The folders that a path leads through, as they are named and as they are."""
    named = (*folder.absolute().parents, *folder.resolve().parents)
    return tuple({_identity(parent) for parent in named})


def _why_no_file(entry: os.DirEntry[str]) -> str:
    return NO_TARGET if entry.is_symlink() else NO_FILE


def _identity(folder: str | Path) -> tuple[int, int]:
    """The same for a folder and for every link to it."""
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino
