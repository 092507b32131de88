"""WebDataset shards: .tar files in which the files of one image share a name up to the first dot.

    000017.jpg   the image (.jpg, .jpeg, .png, .webp, .bmp, .ppm)
    000017.cls   its class number as text; or 000017.json, an object with "label" or "cls"
Shapes: I images of a shard.
"""

import json
import logging
import mmap
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kappaface_dist.data.sources import index_cache
from kappaface_dist.data.sources.base import MAX_CLASSES

logger = logging.getLogger(__name__)

IMAGES = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "ppm"))
LABELS = frozenset(("cls", "json"))


class TarSource:
    """The images of one shard; read in place, nothing is unpacked.

    Raises:
        ValueError: the file is damaged or compressed, or an image of it has no label.
    """

    class_names: Sequence[str] | None = None

    def __init__(self, path: Path):
        stat = path.stat()
        stamp = f"{stat.st_size}:{stat.st_mtime_ns}"
        arrays = index_cache.load_or_build(path, stamp, lambda: _index(path))
        self.label_I = arrays["label"]
        self._path = path
        self._start_I = arrays["start"]
        self._bytes_I = arrays["bytes"]
        with path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image."""
        start = int(self._start_I[index])
        return self._map[start : start + int(self._bytes_I[index])]

    def where(self, index: int) -> str:
        """The shard, the number of the image in it, and its first byte."""
        return f"{self._path} image {index} (byte {int(self._start_I[index])})"


def _index(path: Path) -> index_cache.Arrays:
    logger.info("indexing %s (once; later starts read its cache)", path)
    start_of: dict[str, tuple[int, int]] = {}
    label_of: dict[str, int] = {}
    try:
        # "r:" refuses compressed archives, whose images cannot be read in place.
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key, suffix = f"{folder}/{stem}", suffix.lower()
                if not member.isfile():
                    continue
                if suffix in IMAGES:
                    if key in start_of:
                        raise ValueError(f"{path} has two images named {key.lstrip('/')}")
                    start_of[key] = (member.offset_data, member.size)
                elif suffix in LABELS:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    label = _label(stream.read(), suffix, f"{path} {member.name}")
                    if label is not None:
                        label_of[key] = label
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is not a plain .tar file ({error}): decompress it, or copy it again"
        ) from error
    if not start_of:
        raise ValueError(
            f"{path} has no image in it: a shard has files such as 000017.jpg and 000017.cls"
        )
    for key in start_of:
        if key not in label_of:
            raise ValueError(
                f"{path}: image {key.lstrip('/')} has no label: add {key.lstrip('/')}.cls, with its"
                ' class number, or a .json with "label"'
            )
    places = np.array(list(start_of.values()), dtype=np.int64)
    # The last file may be cut off: its header is whole, its bytes are not there.
    if int(places.sum(axis=1).max()) > path.stat().st_size:
        raise ValueError(f"{path} is cut off in its last image: copy it again")
    labels = np.array([label_of[key] for key in start_of], dtype=np.int32)
    return {"label": labels, "start": places[:, 0], "bytes": places[:, 1]}


def _label(content: bytes, suffix: str, where: str) -> int | None:
    """The class number in a .cls or .json file; None for a .json without one."""
    try:
        value = json.loads(content) if suffix == "json" else int(content)
        if isinstance(value, dict):
            value = value.get("label", value.get("cls"))
            if value is None:
                return None
        if isinstance(value, int) and 0 <= value < MAX_CLASSES:
            return value
    except ValueError:
        pass
    raise ValueError(
        f"{where} holds {content[:40]!r}, not a class number: labels are whole numbers from 0 on"
    )
