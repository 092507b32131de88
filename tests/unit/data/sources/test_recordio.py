"""The reader against files that MXNet wrote, and against the same files damaged."""

import hashlib
import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from kappaface_dist.data.images import decode_image
from kappaface_dist.data.loading.dali import dali_is_installed
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.record_index import read_index
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


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", "train.idx is empty"),
        (b"0\t0\n1\n", "line 2 is '1'"),
        (b"x\t0\n1\t36\n", "line 1"),
        (b"0\t0\n1\t36x\n", "line 2"),
        (b"0\t0\n1\t1.5\n", "line 2"),
        (b"0\t0\n1\t-36\n", "line 2"),
        (b"0\t0\n1\t9999999999999999999999\n", "line 2"),
        (b"0\t0\n1\t0\n", "ends at byte 36, but .*train.idx has the next one at byte 0"),
        (b"1\t40\n", "should begin at byte 0"),
        (b"0\t0\n1\t40\n", "has the next one at byte 40"),
        (b"0\t0\n1\t36\n2\t99999\n", "has the next one at byte 99999"),
        (b"0\t0\n1\t36\n2\t36\n", "has the next one at byte 36"),
        (b"0\t0\n1\t35\n", "has the next one at byte 35"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path, index, message):
    (tmp_path / "train.rec").write_bytes(record(0, b"abcd") + record(1, b"efgh"))
    (tmp_path / "train.idx").write_bytes(index)
    with pytest.raises(ValueError, match=message):
        RecordReader(tmp_path / "train.rec").scan()


@pytest.mark.parametrize("index", [b"0\t0\n1\t36\n", b"0\t0\r\n1\t36\r\n", b"1 36\n0 0"])
def test_forms_of_the_index(tmp_path, index):
    (tmp_path / "train.rec").write_bytes(record(0, b"abcd") + record(1, b"efgh"))
    (tmp_path / "train.idx").write_bytes(index)
    reader = RecordReader(tmp_path / "train.rec")
    assert reader.scan().label_R.tolist() == [0, 1]
    assert [reader.read(0), reader.read(1)] == [b"abcd", b"efgh"]


@pytest.mark.parametrize("listed", [[0], [1], [0, 2, 4], [1, 3], [3, 4], [4, 0]])
def test_an_index_that_lists_some_records_is_a_filter(tmp_path, listed):
    contents = [record(label, jpeg(label, 16 + 4 * label)) for label in range(5)]
    starts = np.cumsum([0, *map(len, contents)])
    (tmp_path / "train.rec").write_bytes(b"".join(contents))
    lines = [f"{key}\t{starts[key]}\n" for key in listed]
    (tmp_path / "train.idx").write_text("".join(lines))
    reader = RecordReader(tmp_path / "train.rec")
    assert reader.scan().label_R.tolist() == sorted(listed)
    assert reader.num_unlisted == 5 - len(listed)
    for _ in range(2):  # the second time from the cache
        catalog = open_catalog(tmp_path / "train.rec", any_labels=True)
        assert catalog.left_out.total == 5 - len(listed)
        assert [catalog.read(i) for i in range(len(listed))] == [
            jpeg(label, 16 + 4 * label) for label in sorted(listed)
        ]


def test_damage_in_a_listed_record_is_found_beside_a_filter(tmp_path):
    contents = [record(label, jpeg(label, 16)) for label in range(3)]
    starts = np.cumsum([0, *map(len, contents)])
    whole = b"".join(contents)
    (tmp_path / "train.idx").write_text(f"0\t0\n2\t{starts[2]}\n")
    for at, bit in ((4, 2), (0, 1), (int(starts[2]) + 4, 4), (int(starts[2]), 1)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        (tmp_path / "train.rec").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"train\.(rec|idx)"):
            RecordReader(tmp_path / "train.rec").scan()


def test_a_long_index_takes_little_memory(tmp_path):
    num = 400_000
    offsets = np.arange(num) * 7_168 + 12_345_678_900
    (tmp_path / "long.idx").write_text("".join(f"{i}\t{at}\n" for i, at in enumerate(offsets)))
    tracemalloc.start()
    found = read_index(tmp_path / "long.idx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found, offsets)
    # The result has 8 bytes a line, joining its pieces 8 more; the rest does not grow with it.
    assert peak < 16 * num + 12e6


def test_labels_beyond_one_scan_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("kappaface_dist.data.sources.recordio.SCAN_CHUNK", 3)
    with RecordWriter(tmp_path / "train") as writer:
        for label in range(10):
            writer.write(label, jpeg(label, 16))
    reader = RecordReader(tmp_path / "train.rec")
    assert reader.scan().label_R.tolist() == list(range(10))
    assert [reader.read(i) for i in range(10)] == [jpeg(label, 16) for label in range(10)]
