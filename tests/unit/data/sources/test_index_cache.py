"""A cached index is used where it fits the record, and otherwise made anew, with a word."""

import json
import logging
import os
import shutil
import zlib

import numpy as np
import pytest

from kappaface_dist.data.sources import index_cache
from kappaface_dist.data.sources.catalog import open_catalog
from tests.unit.data.made_records import jpeg, record, write_records

LABELS = [0, 0, 1, 2, 2, 1]


def dataset(tmp_path):
    """A record with its cache; what the cache holds, and the state of the record that it is of."""
    path = write_records(tmp_path / "train.rec", LABELS, 16)
    open_catalog(path)
    fingerprint = index_cache.file_stamp(path)
    arrays = index_cache.read(tmp_path / "train.rec.kfindex", fingerprint)
    return path, fingerprint, {name: np.array(array) for name, array in arrays.items()}


def opened(path, caplog):
    """The labels of a record and its payloads, and what the log says meanwhile."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        catalog = open_catalog(path)
        return catalog.label_I.tolist(), [catalog.read(i) for i in range(6)], caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.array(LABELS[::-1], np.int32)}, "have another label in the record"),
        ({"label": np.array([0, 0, 1, 2, 1, 2], np.int32)}, "the first is image 4"),
        ({"label": np.array(LABELS, np.float32)}, "expected"),
        ({"label": np.array(LABELS, np.int64)}, "expected"),
        ({"label": np.array(LABELS[:5], np.int32)}, "a label for each image"),
        ({"label": np.array([LABELS], np.int32)}, "expected"),
        ({"label": np.empty(0, np.int32)}, "holds no images"),
        ({"offset": np.arange(6) * 4}, "have another label in the record"),
        ({"offset": np.arange(6) - 40}, "do not follow each other in the file"),
        ({"offset": 2**40 + np.arange(6)}, "do not follow each other in the file"),
        ({"offset": np.zeros(6, np.int64)}, "do not follow each other in the file"),
        ({"record": np.array([0, 1, 2, 3, 4, 9], np.int32)}, "records that there are not"),
        ({"record": np.array([-3, 1, 2, 3, 4, 5], np.int32)}, "records that there are not"),
        ({"unlisted": np.empty(0, np.int64)}, "holds no images"),
        ({"more": np.zeros(1)}, "expected"),
    ],
)
def test_a_cache_that_is_false_is_made_anew_and_named(tmp_path, caplog, changes, message):
    path, fingerprint, arrays = dataset(tmp_path)
    cache = tmp_path / "train.rec.kfindex"
    good = cache.read_bytes()
    index_cache.write(cache, fingerprint, arrays | changes)
    labels, payloads, log = opened(path, caplog)
    assert labels == LABELS
    assert payloads == [jpeg(i, 16) for i in range(6)]
    assert f"the cached index {cache} is made anew" in log
    assert message in log
    assert cache.read_bytes() == good


@pytest.mark.parametrize(
    "array",
    [
        ["label", "|O", [6]],
        ["label", "O", [6]],
        ["label", "<i4", [-6]],
        ["label", "<i4", [10**30]],
        ["label", "<i4", [0, 10**30]],
        ["label", "<i4", ["6"]],
        ["label", "<i4", 6],
        ["label", "<M8[ns]", [6]],
        ["label", "<i4,<i4", [6]],
        ["label", 7, [6]],
        ["label", "no type", [6]],
        "label",
    ],
)
def test_a_header_that_no_writer_of_ours_made(tmp_path, caplog, array):
    path, fingerprint, _ = dataset(tmp_path)
    cache = tmp_path / "train.rec.kfindex"
    content = np.array(LABELS, np.int32).tobytes()
    header = {
        "format": index_cache.FORMAT,
        "fingerprint": fingerprint,
        "checksum": zlib.crc32(content),
        "arrays": [array],
    }
    line = json.dumps(header).encode() + b"\n"
    cache.write_bytes(line + bytes(-len(line) % 64) + content + bytes(4096))
    labels, _, log = opened(path, caplog)
    assert labels == LABELS
    assert f"the cached index {cache} is unusable and made anew" in log


def test_a_header_nested_beyond_all_measure(tmp_path, caplog):
    path, _, _ = dataset(tmp_path)
    (tmp_path / "train.rec.kfindex").write_bytes(b"[" * 60_000 + b"\n")
    labels, _, log = opened(path, caplog)
    assert labels == LABELS
    assert "is unusable and made anew" in log


@pytest.mark.parametrize("where", ["head", "tail"])
def test_another_record_of_the_same_size_and_time(tmp_path, where):
    path, _, _ = dataset(tmp_path)
    times = path.stat()
    content = bytearray(path.read_bytes())
    # The labels of the first or the last record.
    at = 12 if where == "head" else content.rfind(record(1, jpeg(5, 16), 5)) + 12
    content[at : at + 4] = np.float32(2).tobytes()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    changed = [2, *LABELS[1:]] if where == "head" else [*LABELS[:-1], 2]
    assert open_catalog(path).label_I.tolist() == changed


def test_the_index_of_another_record_beside_this_one(tmp_path, caplog):
    path, _, _ = dataset(tmp_path)
    (tmp_path / "other").mkdir()
    other = write_records(tmp_path / "other" / "train.rec", LABELS[::-1], 16)
    open_catalog(other)
    shutil.copy(f"{other}.kfindex", f"{path}.kfindex")
    assert opened(path, caplog)[0] == LABELS


def test_a_false_memory_of_a_check_is_not_used(tmp_path, caplog):
    path, fingerprint, _ = dataset(tmp_path)
    index_cache.write(
        tmp_path / "train.rec.kfchecked", fingerprint, {"readable": np.ones(6, np.float64)}
    )
    with caplog.at_level(logging.WARNING):
        assert not open_catalog(path).checked().any()
    assert "what was checked of" in caplog.text


def photos(tmp_path):
    root = tmp_path / "photos"
    for name in ("ann/1.jpg", "ann/2020/2.jpg", "ben/1.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(len(name), 16))
    open_catalog(root)
    return root


def folder_cache(root, **changes):
    """Change arrays of a folder's cache, its fingerprint kept."""
    cache = root / ".kfindex"
    fingerprint = json.loads(cache.read_bytes().split(b"\n")[0])["fingerprint"]
    arrays = {n: np.array(a) for n, a in index_cache.read(cache, fingerprint).items()}
    index_cache.write(cache, fingerprint, arrays | changes)


def chars(text):
    return np.frombuffer(text, np.uint8)


@pytest.mark.parametrize(
    "changes",
    [
        {"label": np.array([1, 1, 0], np.int32)},
        {"label": np.array([0, 0, 9], np.int32)},
        {"label": np.array([0, 0, 0], np.int32)},
        {"name_end": np.array([5, 16, 400])},
        {"name_end": np.array([16, 5, 21])},
        {"name_end": np.array([5, 16])},
        {"name_chars": chars(b"1.jpg2020/2.jpg/.jpg")},
        {"name_chars": chars(b"1.jpg../../.jpg1.jpg")},
        {"class_chars": chars(b"../ben")},
        {"left_out": chars(b"[]")},
        {"left_out": chars(b"{")},
        {"folder_time": np.array([5])},
    ],
)
def test_a_false_cache_of_a_folder_is_made_anew(tmp_path, caplog, changes):
    root = photos(tmp_path)
    expected = [str(root / name) for name in ("ann/1.jpg", "ann/2020/2.jpg", "ben/1.jpg")]
    folder_cache(root, **changes)
    with caplog.at_level(logging.WARNING):
        catalog = open_catalog(root)
    assert [catalog.where(i) for i in range(3)] == expected
    assert catalog.label_I.tolist() == [0, 0, 1]
    assert f"the cached index {root / '.kfindex'} is made anew" in caplog.text
