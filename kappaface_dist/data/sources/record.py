"""A .rec file as a source of images.

Shapes: I images of the source, R records.
"""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from kappaface_dist.data.sources import index_cache
from kappaface_dist.data.sources.base import MAX_CLASSES, LeftOut
from kappaface_dist.data.sources.class_names import read_class_names
from kappaface_dist.data.sources.recordio import RecordReader

logger = logging.getLogger(__name__)
CHECKED_SUFFIX = ".kfchecked"
LAYOUT = {"offset": "<i8", "label": "<i4", "record": "<i4", "unlisted": "<i8"}
# Words of a record, from its first: the two of its part, then its header's.
FLAG_WORD, LABEL_WORD, VECTOR_WORD = 2, 3, 8
SAMPLE = 1000  # images of a cached index that are compared with the record at each start


class RecordSource:
    """The images of one .rec file; identity records among them are left out.

    Raises:
        ValueError: the file is damaged, or a label is not a class number.
    """

    def __init__(self, path: Path):
        self._path, self._stamp = path, _record_stamp(path)
        arrays = index_cache.load_or_build(
            path,
            self._stamp,
            lambda: _index_records(path),
            lambda arrays: _check_index(arrays, path),
        )
        self.label_I = arrays["label"]
        self.reader = RecordReader(path, arrays["offset"])
        self._record_I = arrays["record"] if len(arrays["record"]) else range(len(self.label_I))
        (unlisted,) = arrays["unlisted"].tolist()
        index = path.with_suffix(".idx")
        why = f"records not in {index.name} (delete it to have all)"
        self.left_out = LeftOut({why: unlisted}, [(str(path), f"{unlisted} {why}")])
        self.left_out = self.left_out if unlisted else LeftOut()

    @cached_property
    def class_names(self) -> Sequence[str] | None:
        """From the file of names beside the record, where there is one."""
        return read_class_names(self._path)

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; ValueError if the record is damaged."""
        return self.reader.read(self._record_I[index])

    def readable(self) -> np.ndarray | None:
        """Which images check_record.py could decode, bool [I]; None if it was not run."""
        kept = index_cache.recall(self._path, self._stamp, CHECKED_SUFFIX)
        if kept is None:
            return None
        try:
            index_cache.check_layout(kept, {"readable": "|u1"})
        except ValueError as error:
            logger.warning("what was checked of %s is not used: %s", self._path, error)
            return None
        return np.unpackbits(kept["readable"], count=len(self.label_I)) > 0

    def keep_readable(self, readable_I: np.ndarray) -> None:
        """Keep the result of a check for later starts, where there is a place to write."""
        arrays = {"readable": np.packbits(readable_I)}
        index_cache.keep(self._path, self._stamp, arrays, CHECKED_SUFFIX)

    def label_vectors(self) -> tuple[np.ndarray, tuple[int, int] | None]:
        """(all labels of each image, float32 [I, L]; the first image that has not as many as the
        image 0, and how many it has).
        """
        word_I = self.reader.offset_R[self._record_I] >> 2
        words = np.memmap(self._path, "<u4", "r")
        flag_I = words[word_I + FLAG_WORD].astype(np.int64)
        others = np.flatnonzero(flag_I != flag_I[0])
        odd = (int(others[0]), max(1, int(flag_I[others[0]]))) if len(others) else None
        # Without a vector the one label stands in the header.
        first, num_labels = (LABEL_WORD, 1) if flag_I[0] == 0 else (VECTOR_WORD, int(flag_I[0]))
        kept_I = word_I[:1] if odd else word_I
        place_IL = kept_I[:, None] + first + np.arange(num_labels)
        return np.asarray(words[place_IL]).view(np.float32), odd

    def where(self, index: int) -> str:
        """File, number of the record in it (identity records counted) and byte."""
        return self.reader.where(self._record_I[index])


def _index_records(path: Path) -> index_cache.Arrays:
    logger.info("indexing %s (once; later starts read its cache)", path)
    reader = RecordReader(path)
    label_R, is_image_R = reader.scan()
    if not is_image_R.any():
        raise ValueError(f"{path} holds no image, only identity records: rebuild the file")
    # NaN fails the first comparison; the identity records' labels mean something else. Those below
    # 0 stay: convert_record.py can drop them, and the catalog takes none.
    good_R = (label_R > -MAX_CLASSES) & (label_R < MAX_CLASSES) & (label_R == np.floor(label_R))
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
        "unlisted": np.array([reader.num_unlisted], dtype=np.int64),
    }


def _check_index(arrays: index_cache.Arrays, path: Path) -> None:
    """ValueError where a cached index contradicts itself, or a sample of the record."""
    index_cache.check_layout(arrays, LAYOUT)
    offset_R, label_I, record_I = arrays["offset"], arrays["label"], arrays["record"]
    if len(arrays["unlisted"]) != 1 or not len(label_I):
        raise ValueError("it holds no images")
    if len(label_I) != (len(record_I) or len(offset_R)):
        raise ValueError("it has not a label for each image")
    ascending = (offset_R[1:] > offset_R[:-1]).all() and (record_I[1:] > record_I[:-1]).all()
    if not ascending or offset_R[0] < 0 or offset_R[-1] >= path.stat().st_size:
        raise ValueError("its records do not follow each other in the file")
    if len(record_I) and not 0 <= record_I[0] <= record_I[-1] < len(offset_R):
        raise ValueError("it has images in records that there are not")
    sample_A = np.unique(np.linspace(0, len(label_I) - 1, SAMPLE).astype(np.int64))
    record_A = record_I[sample_A] if len(record_I) else sample_A
    wrong = np.flatnonzero(RecordReader(path, offset_R).labels(record_A) != label_I[sample_A])
    if len(wrong):
        raise ValueError(
            f"of {len(sample_A)} images that were compared, {len(wrong)} have another label in the"
            f" record, the first is image {sample_A[wrong[0]]}"
        )


def _record_stamp(path: Path) -> str:
    """Changes whenever the .rec or its .idx is replaced."""
    index = path.with_suffix(".idx")
    return index_cache.file_stamp(*(file for file in (path, index) if file.is_file()))
