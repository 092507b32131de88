"""convert_record.py: the same images and labels in every kind of file."""

import json

import pytest

from kappaface_dist.data.prepare.convert import convert
from kappaface_dist.data.sources.catalog import open_catalog
from tests.commands import python
from tests.unit.data.made_records import jpeg, record, write_records

LABELS = [0, 0, 1, 2, 2, 2, 1]


def content(catalog):
    return [(int(catalog.label_I[i]), catalog.read(i)) for i in range(catalog.num_images)]


@pytest.mark.parametrize("name", ["b.rec", "b.tar", "b.parquet"])
@pytest.mark.parametrize("shards", [1, 3])
def test_round_trip(tmp_path, name, shards):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    original = open_catalog(write_records(tmp_path / "a.rec", LABELS, 32))
    out = tmp_path / "out"
    report = convert(original, out / name, shards=shards)
    assert len(report.files) == shards
    assert report.num_images == len(LABELS)
    suffix = name.partition(".")[2]
    assert content(open_catalog(f"{out}/*.{suffix}")) == content(original)
    back = convert(open_catalog(f"{out}/*.{suffix}"), tmp_path / "back.rec")
    assert back.files == [tmp_path / "back.rec"]
    assert content(open_catalog(tmp_path / "back.rec")) == content(original)


def test_to_a_folder_and_back(tmp_path):
    original = open_catalog(write_records(tmp_path / "a.rec", LABELS, 32))
    convert(original, tmp_path / "folder")
    folder = open_catalog(tmp_path / "folder")
    assert list(folder.class_names) == ["0", "1", "2"]
    assert sorted(content(folder)) == sorted(content(original))


def test_repair_mends_and_drops(tmp_path):
    payloads = [jpeg(i, 32) for i in range(5)]
    payloads[1] = payloads[1][:-2]
    payloads[3] = payloads[3][:200]
    path = tmp_path / "a.rec"
    path.write_bytes(b"".join(record(i, payload, i) for i, payload in enumerate(payloads)))
    done = python("tools/convert_record.py", path, tmp_path / "b.rec", "--repair", "--json=-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["num_images"], report["num_mended"]) == (4, 1)
    assert [entry["where"].split()[2] for entry in report["dropped"]] == ["3"]
    assert "left out: " in done.stderr
    repaired = open_catalog(tmp_path / "b.rec")
    assert content(repaired) == [(i, jpeg(i, 32)) for i in (0, 1, 2, 4)]
    # Without it nothing is decoded: a copy is a copy.
    convert(open_catalog(path), tmp_path / "c.rec")
    assert (tmp_path / "c.rec").read_bytes() == path.read_bytes()


def test_an_interrupted_file_leaves_nothing(tmp_path):
    original = open_catalog(write_records(tmp_path / "a.rec", LABELS, 32))

    def stop(done, total):
        raise KeyboardInterrupt

    for name in ("b.tar", "b.rec"):
        with pytest.raises(KeyboardInterrupt):
            convert(original, tmp_path / "out" / name, progress=stop)
        assert list((tmp_path / "out").iterdir()) == []


def test_wrong_requests(tmp_path):
    original = open_catalog(write_records(tmp_path / "a.rec", LABELS, 32))
    with pytest.raises(ValueError, match=r"ends in '\.zip': use \.rec, \.tar"):
        convert(original, tmp_path / "b.zip")
    with pytest.raises(ValueError, match="a folder is one"):
        convert(original, tmp_path / "b", shards=2)
