"""Turns a folder of photos, a folder per identity, into record files.

The work is done in parts of a few thousand photos by several processes. A finished part is kept
until the end, so a job that was stopped goes on where it was when the same command is given again.
Classes get their numbers when all parts are there: an identity without a readable photo gets none.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from kappaface_dist.commands import deaf_to_interrupts, end_with_parent
from kappaface_dist.data.images import decode_image, encode_jpeg
from kappaface_dist.data.jpeg_header import JPEG_START, JpegHeader, read_jpeg_header
from kappaface_dist.data.sources.base import list_dataset, printable
from kappaface_dist.data.sources.class_names import write_class_names
from kappaface_dist.data.sources.recordio import RecordReader, RecordWriter
from kappaface_dist.whole_files import whole_file

PART_FILES = 4096
PARTS = "parts.partial"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RecordReport:
    """What became of the files of a folder.

    Attributes:
        records: the record files written.
        class_names: the identity of each class.
        count_C: images of each class.
        unreadable: files that no image could be made of: (path, why).
        ignored: what lies in the folder and is no identity's image: (where, why).
        num_resumed: images that an earlier, stopped run had done already.
    """

    records: list[Path]
    class_names: list[str]
    count_C: list[int]
    unreadable: list[tuple[str, str]]
    ignored: list[tuple[str, str]]
    num_resumed: int

    @property
    def num_images(self) -> int:
        """Images written."""
        return sum(self.count_C)


@dataclass(frozen=True)
class _Part:
    """Some consecutive files of the folder, and the prefix of the files made of them."""

    prefix: Path
    files: list[tuple[str, Path]]  # identity, photo
    image_size: int

    @property
    def report_path(self) -> Path:
        return self.prefix.with_suffix(".json")

    def stamp(self) -> str:
        """Changes when a photo of the part does."""
        stats = [(identity, str(path), os.stat(path)) for identity, path in self.files]
        parts = [f"{who} {path} {s.st_size} {s.st_mtime_ns}" for who, path, s in stats]
        return sha256(os.fsencode(f"{self.image_size}\n" + "\n".join(parts))).hexdigest()


@dataclass(frozen=True)
class _PartReport:
    stamp: str
    identities: list[str]  # of the images written, in their order
    unreadable: list[tuple[str, str]]


def make_record(
    folder: Path,
    out: Path,
    *,
    image_size: int,
    processes: int = 1,
    shards: int = 1,
    progress: Progress = lambda done, total: None,
) -> RecordReport:
    """Write train.rec, train.idx, train.names and property ("classes,height,width") into out.

    Classes are numbered in the order of the folders' names; folders without a readable image get no
    number. Upright JPEGs that have image_size already are copied as they are, everything else is
    resized and encoded anew (quality 95). The result is the same for any number of processes.

    Args:
        folder: holds a folder of images per identity, which may lie in folders inside it.
        out: folder for the result, made if absent.
        image_size: height and width of the images written, in pixels.
        processes: that decode and encode.
        shards: record files to write; more than one are named train-00000.rec and so on.
        progress: called with (files done, files in all) now and then.

    Raises:
        ValueError: there is no such folder, no readable image in it, or a number is below 1.
    """
    for name, number in (("image size", image_size), ("processes", processes), ("shards", shards)):
        if number < 1:
            raise ValueError(f"{name} is {number}, it must be at least 1")
    files, ignored = _list_files(folder)
    parts = [
        _Part(
            out / PARTS / f"{first // PART_FILES:06}", files[first : first + PART_FILES], image_size
        )
        for first in range(0, len(files), PART_FILES)
    ]
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    todo = [part for part in parts if _finished(part) is None]
    left = sum(len(part.files) for part in todo)
    num_resumed = len(files) - left
    progress(num_resumed, len(files))
    for num_done in _run(todo, processes):
        progress(num_done + num_resumed, len(files))
    reports = [report for part in parts if (report := _finished(part)) is not None]
    unreadable = [entry for report in reports for entry in report.unreadable]
    identities = [name for report in reports for name in report.identities]
    if not identities:
        shutil.rmtree(out / PARTS)
        raise ValueError(
            f"none of the {len(files)} images in {folder} is readable; the first:"
            f" {unreadable[0][0]}: {unreadable[0][1]}"
        )
    class_names = list(dict.fromkeys(identities))
    number_of = {name: number for number, name in enumerate(class_names)}
    labels = [number_of[name] for name in identities]
    count_C = [0] * len(class_names)
    for label in labels:
        count_C[label] += 1
    records = _join([part.prefix for part in parts], labels, out, shards)
    write_class_names(records[0], class_names)
    text = f"{len(class_names)},{image_size},{image_size}\n"
    (out / "property").write_text(text, encoding="ascii")
    shutil.rmtree(out / PARTS)
    return RecordReport(records, class_names, count_C, unreadable, ignored, num_resumed)


def prepare(payload: bytes, image_size: int) -> bytes:
    """JPEG bytes of image_size x image_size, the given ones if they are that already.

    Raises:
        ValueError: no image can be decoded from them.
    """
    pixels_HW3 = decode_image(payload, image_size)
    # One that EXIF turns is written upright: not every reader of records looks there.
    as_wanted = JpegHeader(image_size, image_size, orientation=1)
    if payload[:2] == JPEG_START and read_jpeg_header(payload) == as_wanted:
        return payload
    return encode_jpeg(pixels_HW3)


def _list_files(folder: Path) -> tuple[list[tuple[str, Path]], list[tuple[str, str]]]:
    """(identity, photo) of the whole folder, in order, and (where, why) of what is no photo."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: name one that holds a folder per identity")
    dataset = list_dataset(folder)
    files = [
        (identity, folder / identity / name)
        for identity, names in dataset.images.items()
        for name in names
    ]
    if not files:
        raise ValueError(
            f"{folder} has no sub-folder with images in it: put each identity's images into a"
            " folder of its own"
        )
    return files, [(printable(folder / name), why) for name, why in dataset.left_out]


def _run(parts: list[_Part], processes: int) -> Iterator[int]:
    """Make the parts; after each, the number of files done."""
    num_done = 0
    if processes == 1 or len(parts) == 1:
        done: Iterable[int] = map(_make_part, parts)
        for num in done:
            num_done += num
            yield num_done
        return
    # Fresh processes: a fork of one that runs threads may hang.
    context = multiprocessing.get_context("spawn")
    with deaf_to_interrupts():
        pool = context.Pool(min(processes, len(parts)), end_with_parent)
    with pool:
        for num in pool.imap_unordered(_make_part, parts):
            num_done += num
            yield num_done


def _make_part(part: _Part) -> int:
    stamp = part.stamp()
    identities: list[str] = []
    unreadable: list[tuple[str, str]] = []
    with RecordWriter(part.prefix) as writer:
        for identity, path in part.files:
            try:
                payload = prepare(path.read_bytes(), part.image_size)
            except (ValueError, OSError) as error:
                unreadable.append((printable(path), str(error)))
                continue
            writer.write(0, payload)
            identities.append(identity)
    # Last: a part is finished when its report is there.
    text = json.dumps(asdict(_PartReport(stamp, identities, unreadable)))
    with whole_file(part.report_path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return len(part.files)


def _finished(part: _Part) -> _PartReport | None:
    """The report of a part that is done, for these files as they are now."""
    try:
        report = _PartReport(**json.loads(part.report_path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    if report.stamp != part.stamp():
        return None
    unreadable = [(path, why) for path, why in report.unreadable]
    return _PartReport(report.stamp, report.identities, unreadable)


def _join(prefixes: list[Path], labels: list[int], out: Path, shards: int) -> list[Path]:
    """Write the parts' images with their labels into equal shards."""
    payloads = _payloads(prefixes)
    names = ["train"] if shards == 1 else [f"train-{i:05}-of-{shards:05}" for i in range(shards)]
    for i, name in enumerate(names):
        first, end = len(labels) * i // shards, len(labels) * (i + 1) // shards
        with RecordWriter(out / name) as writer:
            for label in labels[first:end]:
                writer.write(label, next(payloads))
    return [out / f"{name}.rec" for name in names]


def _payloads(prefixes: list[Path]) -> Iterator[bytes]:
    for prefix in prefixes:
        path = prefix.with_suffix(".rec")
        if path.stat().st_size:  # none of its images was readable
            reader = RecordReader(path)
            yield from (reader.read(i) for i in range(len(reader)))
