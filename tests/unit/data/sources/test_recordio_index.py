"""The .idx file beside a record: its forms, what does not fit, and what it leaves out."""

import tracemalloc

import numpy as np
import pytest

from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.record_index import read_index
from kappaface_dist.data.sources.recordio import RecordReader
from tests.unit.data.made_records import jpeg, record


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
