"""The writer's files against those that MXNet wrote from the same payloads."""

import json
from pathlib import Path

import pytest

from kappaface_dist.data.sources.recordio import RecordWriter


def test_same_bytes_as_mxnet(shared_data, tmp_path):
    # Payloads with the magic number at aligned and unaligned places, and an empty one.
    folder = shared_data / "recordio_mxnet"
    records = json.loads((folder / "multipart.expected.json").read_text())
    with RecordWriter(tmp_path / "copy") as writer:
        for record in records:
            writer.write(record["label"], bytes.fromhex(record["hex"]))
    assert (tmp_path / "copy.rec").read_bytes() == (folder / "multipart.rec").read_bytes()
    assert (tmp_path / "copy.idx").read_text() == (folder / "multipart.idx").read_text()


def test_an_interrupted_file_leaves_nothing(tmp_path):
    def write_and_stop():
        with RecordWriter(tmp_path / "train") as writer:
            writer.write(0, b"payload")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("kind", ["rec", "idx"])
def test_a_full_disk_leaves_neither_file(tmp_path, kind):
    def write():
        with RecordWriter(tmp_path / "train") as writer:
            writer.write(0, b"payload")

    (tmp_path / f"train.{kind}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("label", [-1, 0.5, float("nan"), 2**24 + 1])
def test_labels_that_a_float_cannot_hold(label, tmp_path):
    with pytest.raises(ValueError, match="16777216"), RecordWriter(tmp_path / "train") as writer:
        writer.write(label, b"payload")


def test_the_largest_exact_label(tmp_path):
    with RecordWriter(tmp_path / "train") as writer:
        writer.write(2**24, b"payload")
    assert (tmp_path / "train.idx").read_text() == "0\t0\n"
