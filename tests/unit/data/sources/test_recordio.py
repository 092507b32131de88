"""The reader against files that MXNet wrote, and against the same files damaged."""

import hashlib
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from kappaface_dist.data.images import decode_image
from kappaface_dist.data.loading.dali import dali_is_installed
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.recordio import RecordReader, RecordWriter
from tests.unit.data.loading.loaders import ARGUMENTS
from tests.unit.data.made_records import jpeg, part, record


@pytest.fixture
def mxnet_files(shared_data, tmp_path):
    """A copy of the files written by MXNet, because caches are made beside them."""
    return Path(shutil.copytree(shared_data / "recordio_mxnet", tmp_path / "mxnet"))


def offsets_by_key(path):
    return {int(key): int(at) for key, at in (line.split() for line in path.open())}


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_stock_insightface_records(mxnet_files, kind, with_index):
    path = mxnet_files / f"insightface_{kind}.rec"
    offsets = offsets_by_key(path.with_suffix(".idx"))
    if not with_index:
        path.with_suffix(".idx").unlink()
    expected = json.loads((mxnet_files / f"insightface_{kind}.expected.json").read_text())
    reader = RecordReader(path)
    scan = reader.scan()
    number = {int(at): i for i, at in enumerate(reader.offset_R)}
    assert len(reader) == len(offsets)
    assert scan.is_image_R.sum() == expected["num_images"] == len(expected["records"])
    for image in expected["records"]:
        i = number[offsets[image["key"]]]
        assert scan.is_image_R[i]
        assert scan.label_R[i] == image["label"]
        payload = reader.read(i)
        assert len(payload) == image["bytes"]
        assert hashlib.sha256(payload).hexdigest() == image["sha256"]


@pytest.mark.parametrize("with_index", [True, False])
def test_payloads_in_several_parts(mxnet_files, with_index):
    path = mxnet_files / "multipart.rec"
    if not with_index:
        path.with_suffix(".idx").unlink()
    reader = RecordReader(path)
    expected = json.loads((mxnet_files / "multipart.expected.json").read_text())
    assert [reader.read(i).hex() for i in range(len(reader))] == [r["hex"] for r in expected]
    assert reader.scan().label_R.tolist() == [r["label"] for r in expected]


def test_shuffled_index(mxnet_files):
    reader = RecordReader(mxnet_files / "train.rec")
    labels = reader.scan().label_R
    offsets = offsets_by_key(mxnet_files / "train.idx")
    number = {int(at): i for i, at in enumerate(reader.offset_R)}
    for line in (mxnet_files / "train.lst").read_text().splitlines():
        key, label, name = line.split("\t")
        i = number[offsets[int(key)]]
        assert labels[i] == float(label)
        assert reader.read(i) == (mxnet_files / "images" / Path(name).name).read_bytes()


def check_damaged(path, original, touched):
    """A clear error, or every image either has its own label or cannot be read.

    original: byte of each record -> (its label, its payload); touched: the changed byte, if one.
    """
    try:
        catalog = open_catalog(path)
    except ValueError as error:
        message = str(error)
        catalog = None
    if catalog is None:
        assert "\n" not in message
        assert path.stem in message
        return "refused"
    for index in range(catalog.num_images):
        at = int(catalog.where(index).split("byte ")[1].rstrip(")"))
        label, payload = original[at]
        # The label has no check sum: a changed label that is a class number is not detectable.
        if touched is not None and touched in (*range(at + 12, at + 16), *range(at + 32, at + 36)):
            continue
        try:
            found = catalog.read(index)
            if found != payload:
                decode_image(found, 112)
        except ValueError:
            continue
        assert catalog.label_I[index] == label
    check_loaded(catalog)
    return "read"


def check_loaded(catalog):
    """All loaders that there are: the same labels, or the same refusal."""
    found = []
    for name in ARGUMENTS if dali_is_installed() else ("cpu",):
        loader = build_loader(
            catalog,
            **ARGUMENTS[name],
            batch_size=catalog.num_images,
            augment="none",
            num_threads=1,
            device=torch.device("cpu"),
        )
        try:
            (batch,) = loader.batches(0, 1)
            found.append((batch.label_B.tolist(), loader.num_corrupt, dict(loader.corrupt)))
        except ValueError as error:
            found.append(str(error))
    assert all(one == found[0] for one in found)


def test_mutated_files(mxnet_files):
    rng = np.random.default_rng(0)
    outcomes = []
    for name in ("insightface_scalar", "insightface_vector", "multipart", "train"):
        path = mxnet_files / f"{name}.rec"
        index = path.with_suffix(".idx")
        good, good_index = path.read_bytes(), index.read_bytes()
        reader = RecordReader(path)
        labels = reader.scan().label_R
        original = {int(at): (labels[i], reader.read(i)) for i, at in enumerate(reader.offset_R)}
        starts = list(original)
        for trial in range(125):
            damaged, text, touched = bytearray(good), good_index, None
            if trial % 6 == 0:
                del damaged[int(rng.integers(0, len(good))) :]
            elif trial % 6 in (1, 2):  # a bit of some record's first words
                touched = int(rng.choice(starts)) + int(rng.integers(0, 12))
                damaged[touched] ^= 1 << int(rng.integers(0, 8))
            elif trial % 6 == 3:
                touched = int(rng.integers(0, len(good)))
                damaged[touched] ^= 1 << int(rng.integers(0, 8))
            else:
                at = int(rng.integers(0, len(good_index)))
                text = good_index[:at] + bytes([rng.integers(32, 127)]) + good_index[at + 1 :]
                if trial % 6 == 5:
                    text = good_index[:at]
            path.write_bytes(damaged)
            index.write_bytes(text)
            if trial % 2 and trial % 6 < 4:
                index.unlink()
            path.with_name(path.name + ".kfindex").unlink(missing_ok=True)
            outcomes.append(check_damaged(path, original, touched))
    assert len(outcomes) == 500
    assert outcomes.count("refused") > 200
    assert outcomes.count("read") > 20


HEADER = struct.pack("<IfQQ", 0, 0.0, 0, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (record(0, b"abcd")[:-2], "multiple of 4"),
        (record(0, b"abcd")[:-4], "cut off"),
        (bytes(64), "no record in it"),
        (bytes(8) + record(0, b"abcd"), "byte 0"),
        (part(3, HEADER) + record(0, b"abcd"), "begin at byte 0"),
        (record(0, b"abcd") + part(2, b"abcd") + record(0, b"abcd"), "record 0 .* ends at byte 36"),
        (part(1, HEADER) + record(0, b"abcd"), "no further part"),
        (part(1, HEADER), "cut off"),
        (part(0, HEADER[:20]), "header alone needs 24"),
        (part(0, struct.pack("<IfQQ", 9, 0.0, 0, 0) + b"abcd"), "header alone needs 60"),
        (record(0, b"abcd") + bytes(8), "ends at byte 36"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path, content, message):
    (tmp_path / "train.rec").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        RecordReader(tmp_path / "train.rec").scan()


def test_labels_beyond_one_scan_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("kappaface_dist.data.sources.recordio.SCAN_CHUNK", 3)
    with RecordWriter(tmp_path / "train") as writer:
        for label in range(10):
            writer.write(label, jpeg(label, 16))
    reader = RecordReader(tmp_path / "train.rec")
    assert reader.scan().label_R.tolist() == list(range(10))
    assert [reader.read(i) for i in range(10)] == [jpeg(label, 16) for label in range(10)]
