"""What a dataset says about itself: classes, counts, caches, and clear errors."""

import json
import logging
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from kappaface_dist.data.sources.catalog import check_trainable, open_catalog
from kappaface_dist.data.sources.recordio import RecordReader
from tests.unit.data.made_records import jpeg, write_records


@pytest.fixture
def stock(shared_data, tmp_path):
    """A stock InsightFace record (written by MXNet) and what is known of it."""
    folder = tmp_path / "stock"
    folder.mkdir()
    for kind in ("rec", "idx"):
        source = shared_data / "recordio_mxnet" / f"insightface_scalar.{kind}"
        shutil.copyfile(source, folder / f"train.{kind}")
    expected = shared_data / "recordio_mxnet" / "insightface_scalar.expected.json"
    return folder, json.loads(expected.read_text())


def folder_of_images(root, counts):
    for identity, count in counts.items():
        (root / identity).mkdir(parents=True)
        for i in range(count):
            (root / identity / f"{i}.jpg").write_bytes(jpeg(i, 16))
    return root


def test_classes_and_counts_come_from_the_data(stock):
    folder, expected = stock
    catalog = open_catalog(folder / "train.rec")
    assert catalog.num_images == expected["num_images"]
    assert catalog.num_classes == expected["num_classes"]
    assert catalog.count_C.tolist() == expected["images_per_class"]
    assert catalog.label_I.tolist() == [r["label"] for r in expected["records"]]
    assert [len(catalog.read(i)) for i in range(30)] == [r["bytes"] for r in expected["records"]]
    # The identity header is record 0, so image 0 is record 1.
    assert catalog.where(0) == f"{folder / 'train.rec'} record 1 (byte 40)"
    assert catalog.class_names is None


def test_a_folder_that_holds_a_record(stock):
    folder, expected = stock
    assert open_catalog(str(folder)).num_images == expected["num_images"]


def test_several_files_are_one_dataset(tmp_path):
    a = write_records(tmp_path / "part-0.rec", [0, 1, 1])
    b = write_records(tmp_path / "part-1.rec", [2, 0])
    for train in ([a, b], [str(a), str(b)], str(tmp_path / "part-*.rec")):
        catalog = open_catalog(train)
        assert catalog.label_I.tolist() == [0, 1, 1, 2, 0]
        assert catalog.count_C.tolist() == [2, 2, 1]
        assert catalog.where(4).startswith(f"{b} record 1 ")
        assert catalog.read(3) == jpeg(0)
        assert catalog.read(4) == jpeg(1)


def test_an_image_folder(tmp_path):
    root = folder_of_images(tmp_path / "photos", {"zoë": 2, "ann": 3, "empty": 0, ".hidden": 1})
    (root / "notes.txt").write_text("not an identity")
    (root / "ann" / "notes.txt").write_text("not an image")
    for _ in range(2):  # the second time from the cache
        catalog = open_catalog(root)
        assert catalog.label_I.tolist() == [0, 0, 0, 1, 1]
        assert list(catalog.class_names) == ["ann", "zoë"]
        assert catalog.where(4) == str(root / "zoë" / "1.jpg")
        assert catalog.read(4) == jpeg(1, 16)
        assert catalog.count_C.tolist() == [3, 2]


def test_a_new_file_in_a_folder_is_noticed(tmp_path):
    root = folder_of_images(tmp_path / "photos", {"ann": 1})
    assert open_catalog(root).num_images == 1
    (root / "ann" / "more.png").write_bytes(jpeg(5, 16))
    assert open_catalog(root).num_images == 2
    folder_of_images(root, {"ben": 2})
    assert open_catalog(root).count_C.tolist() == [2, 2]


def count_scans(monkeypatch):
    scans = []
    scan = RecordReader.scan
    monkeypatch.setattr(
        RecordReader, "scan", lambda reader: scans.append(reader.path) or scan(reader)
    )
    return scans


def test_the_file_is_scanned_once(tmp_path, monkeypatch):
    path = write_records(tmp_path / "train.rec", [0, 1, 1])
    scans = count_scans(monkeypatch)
    first, second = open_catalog(path), open_catalog(path)
    assert len(scans) == 1
    np.testing.assert_array_equal(first.label_I, second.label_I)
    assert second.read(2) == jpeg(2)
    # Replaced by another file, or only touched: looked at anew.
    write_records(path, [1, 0, 0, 0])
    assert open_catalog(path).label_I.tolist() == [1, 0, 0, 0]
    os.utime(path, ns=(0, 0))
    open_catalog(path)
    assert len(scans) == 3


def test_the_cache_goes_elsewhere_where_the_dataset_is_read_only(tmp_path, monkeypatch):
    path = write_records(tmp_path / "train.rec", [0, 1])
    # A folder in the cache's place cannot be written over, by root either.
    (tmp_path / "train.rec.kfindex" / "occupied").mkdir(parents=True)
    monkeypatch.setenv("KAPPAFACE_CACHE", str(tmp_path / "elsewhere"))
    scans = count_scans(monkeypatch)
    for _ in range(2):
        assert open_catalog(path).label_I.tolist() == [0, 1]
    assert len(scans) == 1
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize("damage", ["truncate", "flip", "pickle", "empty", "other"])
def test_a_damaged_cache_is_made_anew(tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    path = write_records(tmp_path / "train.rec", [0, 1, 1, 2])
    open_catalog(path)
    cache = tmp_path / "train.rec.kfindex"
    good = cache.read_bytes()
    # The last array is padded: -60 lies in the labels.
    flipped = bytearray(good)
    flipped[good.rfind(np.array([0, 1, 1, 2], dtype="<i4").tobytes()) + 4] ^= 2
    damaged = {
        "truncate": good[:-100],
        "flip": bytes(flipped),
        "pickle": pickle.dumps(Hostile()),
        "empty": b"",
        "other": b'["a list"]\n',
    }
    cache.write_bytes(damaged[damage])
    assert open_catalog(path).label_I.tolist() == [0, 1, 1, 2]
    assert not Path("executed").exists()
    assert cache.read_bytes() == good


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("inf"), 1e20])
def test_labels_that_are_no_class_numbers(tmp_path, label):
    path = write_records(tmp_path / "train.rec", [0, 1, label, 2])
    for _ in range(2):  # the second time from the cache, where there is one
        with pytest.raises(ValueError, match=r"train\.rec record 2 \(byte \d+\) has label "):
            open_catalog(path)


@pytest.mark.parametrize("label", [7.0, 2.0**30])
def test_labels_with_large_gaps(tmp_path, label):
    path = write_records(tmp_path / "train.rec", [0, 1, label])
    np.unique([0])  # what numpy loads at the first call is not the catalog's
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"labels up to {int(label)}, but only 3 classes"):
        open_catalog(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6  # no array over all the classes


def test_labels_that_a_command_puts_right_name_it(tmp_path):
    for labels, message in (
        ([0, 7, 14, 21], "--renumber"),
        ([1000, 1001, 1002], "--renumber"),
        ([0, -1, 1, -1], "--renumber --drop-label=-1 leaves out the 2 images"),
        ([0, 1, -7], "--drop-label=-7 leaves out the 1 images"),
    ):
        path = write_records(tmp_path / "train.rec", labels, 16)
        with pytest.raises(ValueError, match=f"tools/convert_record.py DATA OUT .*{message}"):
            open_catalog(path)
        assert open_catalog(path, any_labels=True).label_I.tolist() == labels


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [1, 1]])
def test_one_class_is_nothing_to_train_on(tmp_path, labels):
    catalog = open_catalog(write_records(tmp_path / "train.rec", labels, 16))
    with pytest.raises(ValueError, match=r"has images of 1 class .* give it two at least"):
        check_trainable(catalog, "train.rec", 1)


def test_a_rank_without_a_class(tmp_path):
    catalog = open_catalog(write_records(tmp_path / "train.rec", [0, 1, 1], 16))
    check_trainable(catalog, "train.rec", 2)
    with pytest.raises(ValueError, match="has 2 classes for 3 ranks"):
        check_trainable(catalog, "train.rec", 3)


def test_a_class_without_images_is_reported(tmp_path, caplog):
    path = write_records(tmp_path / "train.rec", [0, 3, 1, 1])
    with caplog.at_level(logging.WARNING):
        catalog = open_catalog(path)
    assert catalog.count_C.tolist() == [1, 2, 0, 1]
    assert "1 of 4 classes have no image" in caplog.text


@pytest.mark.parametrize(
    ("text", "warns"), [("2,112,112\n", False), ("3,112,112\n", True), ("rubbish", True)]
)
def test_a_property_file_that_disagrees(tmp_path, caplog, text, warns):
    path = write_records(tmp_path / "train.rec", [0, 1, 1])
    (tmp_path / "property").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert open_catalog(path).num_classes == 2
    assert ("labels number 2 classes" in caplog.text) == warns


def test_what_is_not_a_dataset(tmp_path):
    (tmp_path / "text.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    record = write_records(tmp_path / "train.rec", [0, 1])
    for train, message in [
        (tmp_path / "absent.rec", "there is no dataset at .*absent.rec"),
        (str(tmp_path / "absent-*.rec"), "there is no dataset at"),
        (tmp_path / "text.txt", "is not a dataset file"),
        (tmp_path / "empty", "no sub-folder with images"),
        ([], "list of record files is empty"),
        ([record, tmp_path / "empty"], "only files can be listed"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            open_catalog(train)
        assert "\n" not in str(caught.value)


def test_where_of_an_index_out_of_range(tmp_path):
    catalog = open_catalog(write_records(tmp_path / "train.rec", [0, 1]))
    with pytest.raises(IndexError):
        catalog.read(-1)
