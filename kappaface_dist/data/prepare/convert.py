"""Writes a dataset anew, in another kind of file."""

import io
import json
import tarfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kappaface_dist.data.images import decode_picture
from kappaface_dist.data.jpeg_header import JPEG_END, JPEG_START
from kappaface_dist.data.prepare.check import lacks_only_the_end
from kappaface_dist.data.sources.base import LeftOut
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.data.sources.class_names import folder_names, write_class_names
from kappaface_dist.data.sources.recordio import RecordWriter
from kappaface_dist.text_files import shown
from kappaface_dist.whole_files import whole_file

KINDS = (".rec", ".tar", ".parquet")
ROWS_PER_GROUP = 256
SUFFIXES = {JPEG_START: ".jpg", b"\x89P": ".png", b"BM": ".bmp", b"RI": ".webp"}

Progress = Callable[[int, int], None]


@dataclass
class ConvertReport:
    """What was written, and what was not.

    Attributes:
        files: what was written.
        num_images: images in it.
        num_mended: JPEGs that got their missing end marker.
        dropped: unreadable images: (where, why).
        with_dropped_labels: how many images had which of the labels to drop.
        left_out: what the source has and does not give.
        label_of: what the classes were before, where they were renumbered.
        numbers: the file that says so.
        count_C: the images written of each of them.
    """

    files: list[Path] = field(default_factory=list)
    num_images: int = 0
    num_mended: int = 0
    dropped: list[tuple[str, str]] = field(default_factory=list)
    with_dropped_labels: dict[int, int] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    label_of: list[int] = field(default_factory=list)
    numbers: Path | None = None
    count_C: list[int] = field(default_factory=list)

    @property
    def num_left_out(self) -> int:
        """All that was there and is not written."""
        labels = sum(self.with_dropped_labels.values())
        return len(self.dropped) + labels + self.left_out.total


def convert(
    catalog: Catalog,
    out: Path,
    *,
    shards: int = 1,
    repair: bool = False,
    renumber: bool = False,
    drop_labels: Collection[int] = (),
    progress: Progress = lambda done, total: None,
) -> ConvertReport:
    """Copy every image, byte for byte, with its class number, in the catalog's order.

    Where classes are renumbered, OUT.renumbered.tsv says which was which.

    Args:
        catalog: the dataset to read.
        out: a name ending in .rec, .tar or .parquet, or a folder for one folder per identity.
        shards: files to write; more than one get "-00000-of-00008" before the ending.
        repair: decode every image, mend JPEGs that only lack their end marker, drop unreadable
            ones. Otherwise only what cannot be read from the source at all is dropped.
        renumber: number the labels that there are from 0 on, in their order.
        drop_labels: leave out the images with these labels, and renumber the others.
        progress: called with (images done, images in all) now and then.

    Raises:
        ValueError: the ending is unknown, a class number does not fit the kind of file, no image
            has a label to drop, or a label to renumber is below 0.
        RuntimeError: pyarrow is not installed.
    """
    if out.suffix not in ("", *KINDS):
        raise ValueError(
            f"{out} ends in {out.suffix!r}: use {', '.join(KINDS)}, or no ending for a folder"
        )
    if shards < 1 or (shards > 1 and not out.suffix):
        raise ValueError(f"shards is {shards}: a folder is one, files can be 1 or more")
    report = ConvertReport(left_out=catalog.left_out)
    label_I = catalog.label_I
    kept = np.arange(catalog.num_images)
    names = catalog.class_names
    if renumber or drop_labels:
        kept = _without(label_I, drop_labels, report)
        before_C = np.unique(label_I[kept])
        label_I = np.searchsorted(before_C, label_I)
        report.label_of = before_C.tolist()
        named = names is not None and before_C[-1] < len(names)
        names = [names[label] for label in report.label_of] if names and named else None
    count_C = np.zeros(int(label_I[kept].max()) + 1, dtype=np.int64)
    for i in range(shards):
        name = out.stem + (f"-{i:05}-of-{shards:05}" if shards > 1 else "")
        path = out.with_name(name + out.suffix)
        part = kept[len(kept) * i // shards : len(kept) * (i + 1) // shards]
        images = _images(catalog, part, label_I, repair, report, count_C, progress)
        if out.suffix == ".rec":
            _write_record(path, images)
        elif out.suffix == ".tar":
            _write_tar(path, images)
        elif out.suffix == ".parquet":
            _write_parquet(path, images)
        else:
            _write_folder(path, images, folder_names(names, len(count_C)))
        report.files.append(path)
    if report.label_of:
        report.count_C = count_C.tolist()
        report.numbers = out.with_name(f"{out.stem}.renumbered.tsv")
        _write_numbers(report.numbers, report, names)
    if out.suffix:
        write_class_names(report.files[0], names)
    return report


def _without(
    label_I: np.ndarray, drop_labels: Collection[int], report: ConvertReport
) -> np.ndarray:
    """The images without these labels, by number."""
    count_of = dict(zip(*np.unique(label_I, return_counts=True), strict=True))
    for label in drop_labels:
        report.with_dropped_labels[label] = int(count_of.get(label, 0))
        if label not in count_of:
            raise ValueError(
                f"no image has the label {label} that is to be dropped: the labels are"
                f" {label_I.min()} to {label_I.max()}"
            )
    kept = np.flatnonzero(~np.isin(label_I, list(drop_labels)))
    if len(kept) and label_I[kept].min() < 0:
        below = int(label_I[kept].min())
        raise ValueError(
            f"{(label_I == below).sum()} images have the label {below}, which is no class number"
            f" and often marks junk: add --drop-label={below}"
        )
    if not len(kept):
        raise ValueError(f"all {len(label_I)} images have a label that is to be dropped: keep some")
    return kept


def _write_numbers(path: Path, report: ConvertReport, names: Sequence[str] | None) -> None:
    """A table with a line per class: its number, its label before, its images and its name."""
    lines = ["class\tlabel_before\timages\tname\n"]
    for number, (label, count) in enumerate(zip(report.label_of, report.count_C, strict=True)):
        lines.append(f"{number}\t{label}\t{count}\t{shown(names[number]) if names else ''}\n")
    with whole_file(path) as unfinished:
        unfinished.write_text("".join(lines), encoding="utf-8")


def _images(
    catalog: Catalog,
    index_A: np.ndarray,
    label_I: np.ndarray,
    repair: bool,
    report: ConvertReport,
    count_C: np.ndarray,
    progress: Progress,
) -> Iterator[tuple[int, int, bytes]]:
    """(number, class, bytes) of those that can be had; count_C counts them."""
    for number, index in enumerate(index_A.tolist(), start=1):
        try:
            payload = catalog.read(index)
            if repair:
                payload = _mended(payload, report)
        except (ValueError, OSError) as error:
            report.dropped.append((catalog.where(index), str(error)))
        else:
            report.num_images += 1
            label = int(label_I[index])
            count_C[label] += 1
            yield index, label, payload
        if number % 256 == 0 or number == len(index_A):
            progress(index + 1, catalog.num_images)


def _mended(payload: bytes, report: ConvertReport) -> bytes:
    if lacks_only_the_end(payload):
        report.num_mended += 1
        payload += JPEG_END
    decode_picture(payload)
    return payload


def _write_record(path: Path, images: Iterator[tuple[int, int, bytes]]) -> None:
    with RecordWriter(path.with_suffix("")) as writer:
        for _, label, payload in images:
            writer.write(label, payload)


def _write_tar(path: Path, images: Iterator[tuple[int, int, bytes]]) -> None:
    with whole_file(path) as unfinished, tarfile.open(unfinished, "w") as archive:
        for index, label, payload in images:
            for suffix, content in ((_suffix(payload), payload), (".cls", b"%d" % label)):
                info = tarfile.TarInfo(f"{index:09}{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def _write_parquet(path: Path, images: Iterator[tuple[int, int, bytes]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise RuntimeError(
            f"{path} is written with pyarrow: pip install 'kappaface_dist[parquet]'"
        ) from error
    # As the datasets library writes it, which then shows the column as pictures.
    features = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with (
        whole_file(path) as unfinished,
        pq.ParquetWriter(unfinished, schema, compression="none") as writer,
    ):
        rows: list[dict[str, object]] = []
        for index, label, payload in images:
            name = f"{index:09}{_suffix(payload)}"
            rows.append({"image": {"bytes": payload, "path": name}, "label": label})
            if len(rows) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _write_folder(path: Path, images: Iterator[tuple[int, int, bytes]], names: list[str]) -> None:
    for index, label, payload in images:
        folder = path / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:09}{_suffix(payload)}").write_bytes(payload)


def _suffix(payload: bytes) -> str:
    return SUFFIXES.get(payload[:2], ".ppm" if payload[:1] == b"P" else ".jpg")
