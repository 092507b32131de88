"""Writes a dataset anew, in another kind of file."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kappaface_dist.data.images import JPEG_END, JPEG_START, decode_picture
from kappaface_dist.data.prepare.check import lacks_only_the_end
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.data.sources.recordio import RecordWriter
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
    """

    files: list[Path] = field(default_factory=list)
    num_images: int = 0
    num_mended: int = 0
    dropped: list[tuple[str, str]] = field(default_factory=list)


def convert(
    catalog: Catalog,
    out: Path,
    *,
    shards: int = 1,
    repair: bool = False,
    progress: Progress = lambda done, total: None,
) -> ConvertReport:
    """Copy every image, byte for byte, with its class number, in the catalog's order.

    Args:
        catalog: the dataset to read.
        out: a name ending in .rec, .tar or .parquet, or a folder for one folder per identity.
        shards: files to write; more than one get "-00000-of-00008" before the ending.
        repair: decode every image, mend JPEGs that only lack their end marker, drop unreadable
            ones. Otherwise only what cannot be read from the source at all is dropped.
        progress: called with (images done, images in all) now and then.

    Raises:
        ValueError: the ending is unknown, or a class number does not fit the kind of file.
        RuntimeError: pyarrow is not installed.
    """
    if out.suffix not in ("", *KINDS):
        raise ValueError(
            f"{out} ends in {out.suffix!r}: use {', '.join(KINDS)}, or no ending for a folder"
        )
    if shards < 1 or (shards > 1 and not out.suffix):
        raise ValueError(f"shards is {shards}: a folder is one, files can be 1 or more")
    report = ConvertReport()
    for i in range(shards):
        name = out.stem + (f"-{i:05}-of-{shards:05}" if shards > 1 else "")
        path = out.with_name(name + out.suffix)
        first, end = (catalog.num_images * k // shards for k in (i, i + 1))
        images = _images(catalog, range(first, end), repair, report, progress)
        if out.suffix == ".rec":
            _write_record(path, images)
        elif out.suffix == ".tar":
            _write_tar(path, images)
        elif out.suffix == ".parquet":
            _write_parquet(path, images)
        else:
            _write_folder(path, images, catalog)
        report.files.append(path)
    return report


def _images(
    catalog: Catalog, indices: range, repair: bool, report: ConvertReport, progress: Progress
) -> Iterator[tuple[int, int, bytes]]:
    """(number, class, bytes) of those that can be had."""
    for index in indices:
        try:
            payload = catalog.read(index)
            if repair:
                payload = _mended(payload, report)
        except (ValueError, OSError) as error:
            report.dropped.append((catalog.where(index), str(error)))
        else:
            report.num_images += 1
            yield index, int(catalog.label_I[index]), payload
        if index % 256 == 255 or index == indices.stop - 1:
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


def _write_folder(path: Path, images: Iterator[tuple[int, int, bytes]], catalog: Catalog) -> None:
    names = catalog.class_names
    width = len(str(catalog.num_classes - 1))
    for index, label, payload in images:
        folder = path / (names[label] if names else f"{label:0{width}}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:09}{_suffix(payload)}").write_bytes(payload)


def _suffix(payload: bytes) -> str:
    return SUFFIXES.get(payload[:2], ".ppm" if payload[:1] == b"P" else ".jpg")
