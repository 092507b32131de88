"""A .rec file as a source of images.

Shapes: I images of the source, R records.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kappaface_dist.data.sources import index_cache
from kappaface_dist.data.sources.base import MAX_CLASSES
from kappaface_dist.data.sources.recordio import RecordReader

logger = logging.getLogger(__name__)
CHECKED_SUFFIX = ".kfchecked"


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


def _record_stamp(path: Path) -> str:
    """Changes whenever the .rec or its .idx is replaced."""
    stats = [file.stat() for file in (path, path.with_suffix(".idx")) if file.is_file()]
    return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)
