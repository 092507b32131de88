"""WebDataset shards: .tar files in which the files of one image share a name up to the first dot.

    000017.jpg   the image, of any kind that a folder may hold
    000017.cls   its class number as text; or 000017.json, an object with "label" or "cls", and
                 perhaps with who that is: "identity", "person", "class_name", "label_name", "name"
A file's kind is what follows its last dot: 000017.face.jpg is a column of sample 000017. A label of
the whole name goes first: "Mr. A 1.cls" is that of "Mr. A 1.jpg", and no other picture's.
Shapes: I images of a shard.
"""

import json
import logging
import mmap
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from kappaface_dist.data.sources import index_cache
from kappaface_dist.data.sources.base import HIDDEN, IMAGE_SUFFIXES, LeftOut
from kappaface_dist.data.sources.class_names import read_class_names
from kappaface_dist.data.sources.tar_labels import LABELS, MAX_LABEL_BYTES, read_label

logger = logging.getLogger(__name__)

LAYOUT = {"label": "<i4", "start": "<i8", "bytes": "<i8", "left_out": "|u1", "names": "|u1"}
# What tarfile raises on a damaged header, beside its own errors.
DAMAGED = (
    *(tarfile.TarError, ValueError, OverflowError, EOFError, LookupError),
    *(MemoryError, RecursionError),
)


class TarSource:
    """The images of one shard; read in place, nothing is unpacked.

    Attributes:
        left_out: the members that are no images of the dataset.
        name_pairs: (class, name) that its labels give, each once.

    Raises:
        ValueError: the file is damaged or compressed, or an image of it has no label.
    """

    def __init__(self, path: Path):
        arrays = index_cache.load_or_build(
            path,
            index_cache.file_stamp(path),
            lambda: _index(path),
            lambda arrays: _check_index(arrays, path),
        )
        self.label_I = arrays["label"]
        self.left_out = _left_out(arrays)
        self.name_pairs = _name_pairs(arrays)
        self._path = path
        self._start_I = arrays["start"]
        self._bytes_I = arrays["bytes"]
        with path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def class_names(self) -> Sequence[str] | None:
        """From the file of names beside the shard, where there is one."""
        return read_class_names(self._path)

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image."""
        start = int(self._start_I[index])
        return self._map[start : start + int(self._bytes_I[index])]

    def where(self, index: int) -> str:
        """The shard, the number of the image in it, and its first byte."""
        return f"{self._path} image {index} (byte {int(self._start_I[index])})"


@dataclass(frozen=True)
class _Member:
    """A file of a shard: `stem` is its name without what follows the last dot, `key` the first."""

    name: str
    start: int
    size: int

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower()

    @property
    def stem(self) -> str:
        return self.name[: len(self.name) - len(self.suffix)]

    @property
    def key(self) -> str:
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + name.partition(".")[0]


def _index(path: Path) -> index_cache.Arrays:
    logger.info("indexing %s (once; later starts read its cache)", path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is not a plain .tar file (it is empty): copy it again")
    left_out: list[tuple[str, str]] = []
    # Mapped: a header that claims gigabytes cannot make a read allocate them.
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        members = list(_members(path, data, left_out))
        images = [member for member in members if member.suffix in IMAGE_SUFFIXES]
        label_of: dict[str, int] = {}
        names: dict[tuple[int, str], None] = {}  # in their order
        for member in members:
            if member.suffix in LABELS:
                where = f"{path} {member.name}"
                content = data[member.start : member.start + min(member.size, MAX_LABEL_BYTES + 1)]
                label, name = read_label(content, where, of_json=member.suffix == ".json")
                if label is not None and name is not None:
                    names[label, name] = None
                if label is not None and label_of.setdefault(member.stem, label) != label:
                    raise ValueError(f"{path} has two labels for {member.stem}: remove one")
    if not images:
        raise ValueError(
            f"{path} has no image in it: a shard has files such as 000017.jpg and 000017.cls"
        )
    taken = _labelled(path, images, label_of, left_out)
    return {
        "label": np.array([label for _, label in taken], dtype=np.int32),
        "start": np.array([member.start for member, _ in taken], dtype=np.int64),
        "bytes": np.array([member.size for member, _ in taken], dtype=np.int64),
        "left_out": np.frombuffer(json.dumps(asdict(LeftOut.of(left_out))).encode(), np.uint8),
        "names": np.frombuffer(json.dumps(list(names)).encode(), np.uint8),
    }


def _members(path: Path, data: mmap.mmap, left_out: list[tuple[str, str]]) -> Iterator[_Member]:
    """The images and labels by their names; the others are added to left_out."""
    end = len(data)
    try:
        # "r:" refuses compressed archives, whose images cannot be read in place.
        archive = tarfile.open(fileobj=cast(Any, data), mode="r:")  # noqa: SIM115 (data's owner closes)
        for entry in archive:
            name = entry.name
            suffix = Path(name).suffix.lower()
            why = ""
            if entry.size < 0:
                raise tarfile.TarError(f"{name} has {entry.size} bytes")
            if entry.isdir():
                continue
            if not entry.isfile() or entry.issparse():
                why = "a link or a file with holes"
            elif name.rpartition("/")[2].startswith("."):
                why = HIDDEN
            elif suffix not in IMAGE_SUFFIXES and suffix not in LABELS:
                why = "neither an image nor a label by its name"
            if why:
                left_out.append((f"{path} {name}", why))
                continue
            # The last file may be cut off: its header is whole, its bytes are not there.
            if entry.offset_data + entry.size > end:
                raise tarfile.TarError(f"{name} claims {entry.size} bytes and is cut off")
            yield _Member(name, entry.offset_data, entry.size)
    except DAMAGED as error:
        raise ValueError(
            f"{path} is not a plain .tar file ({error}): decompress it, or copy it again"
        ) from error


def _labelled(
    path: Path, images: list[_Member], label_of: dict[str, int], left_out: list[tuple[str, str]]
) -> list[tuple[_Member, int]]:
    """The image of each sample, with its label; further columns are added to left_out."""
    labels_of_key: dict[str, list[str]] = defaultdict(list)
    for stem in label_of.keys() - {image.stem for image in images}:
        labels_of_key[_Member(f"{stem}.cls", 0, 0).key].append(stem)
    # Pictures by the label that they share: one of them is the image.
    sharing: dict[str, list[_Member]] = defaultdict(list)
    for image in images:
        stems = labels_of_key[image.key]
        own = [stem for stem in (image.stem, image.key) if stem in label_of] or stems
        if not own or (own is stems and len(stems) > 1):
            stem = image.stem.lstrip("/")
            raise ValueError(
                f"{path}: image {stem} has no label: add {stem}.cls, with its class number, or a"
                ' .json with "label"'
            )
        sharing[own[0]].append(image)
    chosen: dict[_Member, int] = {}
    for stem, pictures in sharing.items():
        wanted = [picture for picture in pictures if picture.stem == stem] or pictures
        if len(wanted) > 1:
            raise ValueError(
                f"{path} has two images named {stem.lstrip('/')}: {wanted[0].name} and"
                f" {wanted[1].name}, remove one"
            )
        chosen[wanted[0]] = label_of[stem]
        why = "another picture of a sample"
        left_out.extend((f"{path} {p.name}", why) for p in pictures if p is not wanted[0])
    left_out.extend(
        (f"{path} {stem}", "a label without an image") for stem in label_of if stem not in sharing
    )
    return [(image, chosen[image]) for image in images if image in chosen]


def _check_index(arrays: index_cache.Arrays, path: Path) -> None:
    """ValueError where a cached index contradicts itself or the file."""
    index_cache.check_layout(arrays, LAYOUT)
    label_I, start_I, bytes_I = arrays["label"], arrays["start"], arrays["bytes"]
    if not 0 < len(label_I) == len(start_I) == len(bytes_I):
        raise ValueError("it has not a label and a place for each image")
    if int(label_I.min()) < 0 or int(start_I.min()) < 0 or int(bytes_I.min()) < 0:
        raise ValueError("it has numbers below 0")
    if int((start_I + bytes_I).max()) > path.stat().st_size:
        raise ValueError("its images do not lie in the file")
    _left_out(arrays)
    _name_pairs(arrays)


def _name_pairs(arrays: index_cache.Arrays) -> list[tuple[int, str]]:
    return [(int(label), str(name)) for label, name in json.loads(arrays["names"].tobytes())]


def _left_out(arrays: index_cache.Arrays) -> LeftOut:
    found = json.loads(arrays["left_out"].tobytes())
    return LeftOut(dict(found["counts"]), [(where, why) for where, why in found["listed"]])
