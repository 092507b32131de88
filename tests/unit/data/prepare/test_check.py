"""check_record.py finds what was put wrong on purpose, and nothing in good files."""

import json
import shutil
import struct

import numpy as np
import pytest

from kappaface_dist.data.prepare.check import check_catalog
from kappaface_dist.data.sources.catalog import open_catalog
from tests.commands import python
from tests.unit.data.made_records import jpeg, record


def write(path, entries):
    content = [record(label, payload, i) for i, (label, payload) in enumerate(entries)]
    path.write_bytes(b"".join(content))
    return path


def checked(path):
    return check_catalog(open_catalog(path), num_threads=2)


def good_entries():
    return [(i // 3, jpeg(i, 32)) for i in range(12)]


def test_a_good_record(tmp_path):
    report = checked(write(tmp_path / "a.rec", good_entries()))
    assert report.verdict == "good"
    assert report.problems == report.remarks == []
    assert report.sizes == {"32 x 32": 12}
    assert report.formats == {"jpeg": 12}


def test_each_fault_is_found(tmp_path):
    entries = good_entries()
    entries[1] = (0, entries[0][1])  # twice in one identity
    entries[4] = (1, entries[6][1])  # in identities 1 and 2
    entries[5] = (1, entries[5][1][:-2])  # no end marker
    entries[7] = (2, entries[7][1][:100])
    entries[8] = (2, b"")
    entries[9] = (4, jpeg(50, 48))
    entries[10:] = [(4, jpeg(51, 32))]
    report = checked(write(tmp_path / "a.rec", entries))
    assert report.num_unreadable == 3
    assert [where.split(" record ")[1].split()[0] for where, _ in report.unreadable] == list("578")
    assert report.num_only_end_missing == 1
    assert report.num_duplicates == 1
    assert report.num_shared == 1
    (pair,) = report.shared
    assert {where.split(" record ")[1].split()[0] for where in pair} == {"4", "6"}
    assert report.empty_classes == [3]
    assert report.sizes == {"32 x 32": 7, "48 x 48": 1}
    for part in (
        "3 of 11 images are unreadable (27.27%), 1 of them only lack the JPEG end marker",
        "1 of 5 class numbers have no image",
        "1 images are in more than one identity",
    ):
        assert part in report.verdict
    assert len(report.remarks) == 2


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_a_changed_label_in_a_stock_record(shared_data, tmp_path, kind):
    for suffix in ("rec", "idx"):
        source = shared_data / "recordio_mxnet" / f"insightface_{kind}.{suffix}"
        shutil.copyfile(source, tmp_path / f"train.{suffix}")
    assert checked(tmp_path / "train.rec").verdict == "good"
    content = bytearray((tmp_path / "train.rec").read_bytes())
    catalog = open_catalog(tmp_path / "train.rec")
    at = int(catalog.where(4).split("byte ")[1].rstrip(")"))
    struct.pack_into("<f", content, at + (12 if kind == "scalar" else 32), 3.0)
    (tmp_path / "train.rec").write_bytes(content)
    assert open_catalog(tmp_path / "train.rec").label_I[4] == 3
    report = checked(tmp_path / "train.rec")
    (problem,) = report.problems
    assert "records 5 to 9 are one identity's, but have the labels 1, 3" in problem


def test_one_class_is_not_good(tmp_path):
    for entries in ([(0, jpeg(i, 32)) for i in range(5)], [(0, jpeg(0, 32))]):
        (problem,) = checked(write(tmp_path / "a.rec", entries)).problems
        assert problem == "all images are of one class: there is nothing to tell apart"


def test_good_is_only_what_nothing_was_left_out_of(tmp_path):
    path = write(tmp_path / "a.rec", good_entries())
    catalog = open_catalog(path)
    bytes_at = [int(catalog.where(i).split("byte ")[1].rstrip(")")) for i in range(12)]
    lines = [f"{i}\t{at}\n" for i, at in enumerate(bytes_at) if i not in (4, 8)]
    (tmp_path / "a.idx").write_text("".join(lines))
    report = checked(path)
    assert report.verdict.startswith(
        "usable; left out: records not in a.idx (delete it to have all): 2"
    )
    assert report.problems == []
    assert report.num_images == 10
    root = tmp_path / "photos"
    for name in ("ann", "ben"):
        (root / name).mkdir(parents=True)
        (root / name / "1.jpg").write_bytes(jpeg(len(list(root.iterdir())), 32))
    assert checked(root).verdict == "good (2 identities have a single image)"
    (root / "ann" / "notes.txt").write_text("")
    done = python("tools/check_record.py", root, "--json=-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["good"] is False
    assert json.loads(done.stdout)["left_out"] == {"not an image by its name": 1}
    assert f"left out: {root / 'ann' / 'notes.txt'}: not an image by its name" in done.stderr


def test_an_identity_header_is_not_compared_with_a_filter(shared_data, tmp_path):
    source = shared_data / "recordio_mxnet" / "insightface_scalar.rec"
    shutil.copyfile(source, tmp_path / "train.rec")
    lines = source.with_suffix(".idx").read_text().splitlines(keepends=True)
    (tmp_path / "train.idx").write_text("".join(lines[:3] + lines[4:]))
    report = checked(tmp_path / "train.rec")
    assert report.range_faults == []
    assert report.left_out.total == 1


def test_the_tool(tmp_path):
    good = write(tmp_path / "good.rec", good_entries())
    done = python("tools/check_record.py", good, "--json=-", "--plot", tmp_path / "plot.png")
    assert done.returncode == 0, done.stderr
    assert "verdict: good" in done.stderr
    report = json.loads(done.stdout)
    assert report["good"] is True
    assert report["images_per_class"] == {"min": 3, "median": 3.0, "max": 3}
    assert (tmp_path / "plot.png").stat().st_size > 1000
    bad = write(tmp_path / "bad.rec", [*good_entries(), (3, b"rubbish")])
    done = python("tools/check_record.py", bad)
    assert done.returncode == 1
    assert f"unreadable: {bad} record 12 (byte " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("verdict: not good: 1 of 13 images")
    assert np.count_nonzero([line.startswith("Traceback") for line in done.stderr.split()]) == 0


def test_what_was_checked_is_remembered_until_the_file_changes(tmp_path):
    entries = good_entries()
    entries[5] = (1, entries[5][1][:100])
    path = write(tmp_path / "a.rec", entries)
    assert not open_catalog(path).checked().any()
    checked(path)
    assert open_catalog(path).checked().tolist() == [i != 5 for i in range(12)]
    write(path, good_entries())
    assert not open_catalog(path).checked().any()
