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


def renumbered(path):
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]


@pytest.mark.parametrize("labels", [[0, 7, 63, 7, 14], [1003, 1000, 1000, 1001, 1003]])
@pytest.mark.parametrize("name", ["b.rec", "b.tar", "folder"])
def test_renumbering_gaps_and_offsets(tmp_path, labels, name):
    path = write_records(tmp_path / "a.rec", labels, 32)
    report = convert(open_catalog(path, any_labels=True), tmp_path / name, renumber=True)
    order = sorted(set(labels))
    assert report.label_of == order
    made = open_catalog(tmp_path / name)
    assert made.count_C.tolist() == [labels.count(label) for label in order]
    # The picture of a seed stays with its label.
    expected = [(order.index(label), jpeg(i, 32)) for i, label in enumerate(labels)]
    assert sorted(content(made)) == sorted(expected)
    table = renumbered(tmp_path / f"{name.partition('.')[0]}.renumbered.tsv")
    assert [[int(field) for field in line[:3]] for line in table] == [
        [number, label, labels.count(label)] for number, label in enumerate(order)
    ]


@pytest.mark.parametrize("shards", [1, 2])
def test_dropping_labels(tmp_path, shards):
    labels = [-1, 0, 1, -1, 3, 1, -1, 9]
    path = write_records(tmp_path / "a.rec", labels, 32)
    command = ["tools/convert_record.py", path, tmp_path / "out" / "b.rec", "--json=-"]
    options = ["--renumber", "--drop-label=-1", "--drop-label", "9", f"--shards={shards}"]
    done = python(*command, *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["dropped_labels"] == {"-1": 3, "9": 1}
    assert report["label_of_class"] == [0, 1, 3]
    assert "left out: 3 images with label -1" in done.stderr
    assert "4 images; 0 mended, 4 left out" in done.stderr
    made = open_catalog(f"{tmp_path}/out/*.rec")
    assert content(made) == [(0, jpeg(1, 32)), (1, jpeg(2, 32)), (2, jpeg(4, 32)), (1, jpeg(5, 32))]
    assert (made.count_C > 0).all()


def test_names_stay_with_their_classes(tmp_path):
    for name in ("ann", "ben", "cleo"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").write_bytes(jpeg(len(name), 32))
    catalog = open_catalog(tmp_path / "photos")
    convert(catalog, tmp_path / "out", renumber=True, drop_labels=[1])
    assert list(open_catalog(tmp_path / "out").class_names) == ["ann", "cleo"]
    table = renumbered(tmp_path / "out.renumbered.tsv")
    assert table == [["0", "0", "1", "ann"], ["1", "2", "1", "cleo"]]


def test_labels_that_cannot_be_dropped(tmp_path):
    catalog = open_catalog(write_records(tmp_path / "a.rec", [0, 0, 1], 32))
    with pytest.raises(ValueError, match=r"no image has the label 5 .* labels are 0 to 1"):
        convert(catalog, tmp_path / "b.rec", drop_labels=[5])
    junk = open_catalog(write_records(tmp_path / "c.rec", [-1, 0, -1, 1], 32), any_labels=True)
    with pytest.raises(ValueError, match=r"2 images have the label -1, .* add --drop-label=-1"):
        convert(junk, tmp_path / "b.rec", renumber=True)
    with pytest.raises(ValueError, match="all 3 images have a label that is to be dropped"):
        convert(catalog, tmp_path / "b.rec", drop_labels=[0, 1])
    assert not list(tmp_path.glob("b*"))


def test_a_class_that_loses_its_images_is_named(tmp_path):
    payloads = [jpeg(0, 32), jpeg(1, 32)[:200], jpeg(2, 32)]
    path = tmp_path / "a.rec"
    path.write_bytes(b"".join(record(7 * i, payload, i) for i, payload in enumerate(payloads)))
    done = python("tools/convert_record.py", path, tmp_path / "b.rec", "--repair", "--renumber")
    assert done.returncode == 0, done.stderr
    assert "class 1, label 7 before, has no image left" in done.stderr


def test_what_the_source_leaves_out_is_counted(tmp_path):
    for name in ("ann/1.jpg", "ben/1.jpg", "loose.jpg", "ben/notes.txt"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(jpeg(len(name), 32))
    done = python("tools/convert_record.py", tmp_path / "photos", tmp_path / "b.rec")
    assert done.returncode == 0, done.stderr
    assert "2 images; 0 mended, 2 left out" in done.stdout
    assert "loose.jpg: in no identity's folder" in done.stderr
    assert "notes.txt: not an image by its name" in done.stderr
