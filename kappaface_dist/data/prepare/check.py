"""Looks at every image of a dataset, and says what is wrong with it.

Shapes: I images of the dataset, C classes.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from kappaface_dist.data.images import decode_picture
from kappaface_dist.data.jpeg_header import JPEG_END, JPEG_START
from kappaface_dist.data.sources.base import LeftOut
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.data.sources.record import RecordSource
from kappaface_dist.data.sources.recordio import RecordReader

CHUNK = 1024
MAX_LISTED = 1000

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CheckReport:
    """What was found.

    Attributes:
        unreadable: (where, why), the first thousand.
        num_unreadable: all of them.
        num_only_end_missing: those that lack nothing but the JPEG end marker.
        sizes: how many images have which "height x width".
        formats: how many are "jpeg", and how many something else.
        num_duplicates: images whose bytes an earlier image has, under the same class.
        shared: images whose bytes another class has too: (where, where), the first thousand.
        num_shared: all of them.
        empty_classes: class numbers without an image, the first thousand.
        range_faults: what an InsightFace identity header says otherwise than the images.
        left_out: what the source has and does not give.
    """

    num_images: int
    count_C: np.ndarray
    unreadable: list[tuple[str, str]]
    num_unreadable: int
    num_only_end_missing: int
    sizes: dict[str, int]
    formats: dict[str, int]
    num_duplicates: int
    shared: list[tuple[str, str]]
    num_shared: int
    empty_classes: list[int]
    range_faults: list[str]
    left_out: LeftOut

    @property
    def problems(self) -> list[str]:
        """What should be put right before training, a sentence each."""
        found = []
        if self.num_unreadable:
            share = self.num_unreadable / self.num_images
            text = f"{self.num_unreadable} of {self.num_images} images are unreadable ({share:.2%})"
            if self.num_only_end_missing:
                text += f", {self.num_only_end_missing} of them only lack the JPEG end marker"
            found.append(text + ": tools/convert_record.py --repair mends or drops them")
        if self.empty_classes:
            num = int((self.count_C == 0).sum())
            found.append(
                f"{num} of {len(self.count_C)} class numbers have no image:"
                " tools/convert_record.py --renumber writes it without them"
            )
        if np.count_nonzero(self.count_C) < 2:
            found.append("all images are of one class: there is nothing to tell apart")
        if self.num_shared:
            found.append(f"{self.num_shared} images are in more than one identity: remove them")
        if self.range_faults:
            found.append(f"the identity header does not fit the images: {self.range_faults[0]}")
        return found

    @property
    def remarks(self) -> list[str]:
        """What is worth knowing, and no hindrance."""
        found = []
        if self.num_duplicates:
            found.append(f"{self.num_duplicates} images are there twice within their identity")
        singles = int((self.count_C == 1).sum())
        if singles:
            found.append(f"{singles} identities have a single image")
        if len(self.sizes) > 1:
            found.append(f"the images have {len(self.sizes)} sizes: reading resizes them each time")
        return found

    @property
    def verdict(self) -> str:
        """A line for people."""
        if self.problems:
            return "not good: " + "; ".join(self.problems)
        word = f"usable; left out: {self.left_out}" if self.left_out.total else "good"
        return word + (" (" + "; ".join(self.remarks) + ")" if self.remarks else "")


@dataclass
class _Found:
    """Of a chunk of images."""

    unreadable: dict[int, str] = field(default_factory=dict)
    only_end_missing: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)


def check_catalog(
    catalog: Catalog, *, num_threads: int, progress: Progress = lambda done, total: None
) -> CheckReport:
    """Read, decode and compare all images.

    Args:
        catalog: the dataset.
        num_threads: that decode.
        progress: called with (images done, images in all) now and then.
    """
    num_images = catalog.num_images
    hash_I = np.zeros(num_images, dtype=np.uint64)
    total = _Found()
    chunks = [range(first, min(first + CHUNK, num_images)) for first in range(0, num_images, CHUNK)]
    num_done = 0
    with ThreadPoolExecutor(num_threads) as pool:
        for chunk, found in zip(
            chunks, pool.map(lambda c: _look_at(catalog, c, hash_I), chunks), strict=True
        ):
            total.unreadable |= found.unreadable
            total.only_end_missing += found.only_end_missing
            total.sizes += found.sizes
            total.formats += found.formats
            num_done += len(chunk)
            progress(num_done, num_images)
    keep_result(catalog, total.unreadable)
    num_duplicates, shared = find_duplicates(hash_I, catalog.label_I)
    return CheckReport(
        num_images=num_images,
        count_C=catalog.count_C,
        unreadable=[
            (catalog.where(i), why) for i, why in list(total.unreadable.items())[:MAX_LISTED]
        ],
        num_unreadable=len(total.unreadable),
        num_only_end_missing=total.only_end_missing,
        sizes=dict(total.sizes.most_common()),
        formats=dict(total.formats.most_common()),
        num_duplicates=num_duplicates,
        shared=[(catalog.where(a), catalog.where(b)) for a, b in shared[:MAX_LISTED]],
        num_shared=len(shared),
        empty_classes=np.flatnonzero(catalog.count_C == 0)[:MAX_LISTED].tolist(),
        range_faults=[fault for source in catalog.sources for fault in range_faults(source)],
        left_out=catalog.left_out,
    )


def keep_result(catalog: Catalog, unreadable: Iterable[int]) -> None:
    """Spare the DALI loader the check before the GPU decodes what is looked at here."""
    readable_I = np.ones(catalog.num_images, dtype=bool)
    readable_I[list(unreadable)] = False
    for source, first in zip(catalog.sources, catalog.first_image, strict=True):
        if isinstance(source, RecordSource):
            source.keep_readable(readable_I[first : first + len(source.label_I)])


def _look_at(catalog: Catalog, chunk: range, hash_I: np.ndarray) -> _Found:
    found = _Found()
    for index in chunk:
        payload = b""
        try:
            payload = catalog.read(index)
            pixels_HW3 = decode_picture(payload)
        except (ValueError, OSError) as error:
            found.unreadable[index] = str(error)
            found.only_end_missing += lacks_only_the_end(payload)
        else:
            height, width, _ = pixels_HW3.shape
            found.sizes[f"{height} x {width}"] += 1
            found.formats["jpeg" if payload[:2] == JPEG_START else "other"] += 1
        # Unreadable ones get a number of their own each: they are duplicates of nothing.
        key = payload if index not in found.unreadable else b"%d unreadable" % index
        hash_I[index] = int.from_bytes(blake2b(key, digest_size=8).digest(), "little")
    return found


def lacks_only_the_end(payload: bytes) -> bool:
    """Whether a JPEG that cannot be decoded can be with its end marker added."""
    if payload[:2] != JPEG_START or payload.endswith(JPEG_END):
        return False
    try:
        decode_picture(payload + JPEG_END)
    except ValueError:
        return False
    return True


def find_duplicates(hash_I: np.ndarray, label_I: np.ndarray) -> tuple[int, list[tuple[int, int]]]:
    """Images with equal hashes: how many repeat one of the same class, and pairs of two classes."""
    order = np.lexsort((label_I, hash_I))
    same = hash_I[order][1:] == hash_I[order][:-1]
    same_class = label_I[order][1:] == label_I[order][:-1]
    pairs = np.flatnonzero(same & ~same_class)
    shared = [(int(order[i]), int(order[i + 1])) for i in pairs]
    return int((same & same_class).sum()), shared


def range_faults(source: Any) -> list[str]:
    """Where the identity header of a stock InsightFace record contradicts its images.

    Record 0 says where the identity records are, and each of those which records are its images. A
    record has no checksum: this is the one thing in the file to compare the labels with.
    """
    if not isinstance(source, RecordSource):
        return []
    reader: RecordReader = source.reader
    label_R, is_image_R = reader.scan()
    first = reader.header(0)
    if reader.num_unlisted:  # the header counts records that the .idx leaves out
        return []
    if is_image_R[0] or len(first) != 2:
        return []
    start, end = (int(number) for number in first)
    if not 0 < start < end <= len(reader):
        return [f"record 0 says {first}, the file has {len(reader)} records"]
    faults = []
    covered = 0
    for record in range(start, end):
        low, high = (int(number) for number in reader.header(record)[:2])
        labels = label_R[low:high]
        if not (0 < low < high <= start):
            faults.append(f"record {record} gives its identity the records {low} to {high - 1}")
        elif (labels != labels[0]).any():
            found = ", ".join(f"{label:g}" for label in np.unique(labels)[:5])
            faults.append(
                f"records {low} to {high - 1} are one identity's, but have the labels {found}"
            )
        covered += high - low
    if not faults and covered != start - 1:
        faults.append(f"the identities have {covered} images, the file {start - 1}")
    return faults
