"""The names of identities survive every form that a dataset is written in."""

import os

import pytest

from kappaface_dist.data.prepare.convert import convert
from kappaface_dist.data.prepare.make_record import make_record
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.class_names import (
    folder_names,
    names_path,
    read_class_names,
    write_class_names,
)
from tests.unit.data.made_records import jpeg

NAMES = [
    "ann",
    "Bob van Lee",
    "a|b,c\td",
    "zoë",
    "张伟",
    r"back\slash \n",
    "line\nbreak\r",
    "#",
    " x ",
]


@pytest.fixture
def photos(tmp_path):
    """A folder of photos for each name, and one whose name is no UTF-8."""
    names = [*NAMES, os.fsdecode(b"lat\xefn")]
    for number, name in enumerate(names):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(2):
            (tmp_path / "photos" / name / f"{k}.jpg").write_bytes(jpeg(10 * number + k, 16))
    return tmp_path / "photos"


def people(catalog):
    """The name that each image's bytes go with."""
    return {
        catalog.read(i): catalog.class_names[catalog.label_I[i]] for i in range(catalog.num_images)
    }


def test_through_every_form(photos, tmp_path):
    expected = {path.read_bytes(): path.parent.name for path in photos.glob("*/*.jpg")}
    assert len(expected) == 20
    report = make_record(photos, tmp_path / "made", image_size=16, shards=2)
    assert names_path(report.records[0]) == names_path(report.records[1])
    catalog = open_catalog(tmp_path / "made" / "train-*.rec")
    assert people(catalog) == expected
    for out, shards in (("one.rec", 1), ("s.tar", 3), ("p.parquet", 2), ("folder", 1)):
        if out.endswith("parquet"):
            pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        files = convert(catalog, tmp_path / "to" / out, shards=shards).files
        catalog = open_catalog(files if len(files) > 1 else files[0])
        assert people(catalog) == expected, out


def test_renumbering_takes_the_names_along(photos, tmp_path):
    catalog = open_catalog(photos)
    dropped = list(catalog.class_names).index("zoë")
    convert(catalog, tmp_path / "a.rec", renumber=True, drop_labels=[dropped])
    renumbered = open_catalog(tmp_path / "a.rec")
    expected = {p.read_bytes(): p.parent.name for p in photos.glob("*/*.jpg")}
    assert people(renumbered) == {k: name for k, name in expected.items() if name != "zoë"}


def test_a_record_written_over_another_has_not_its_names(photos, tmp_path, caplog):
    make_record(photos, tmp_path / "made", image_size=16)
    nameless = open_catalog(tmp_path / "made" / "train.rec")
    (tmp_path / "made" / "train.names").unlink()
    assert open_catalog(tmp_path / "made" / "train.rec").class_names is None
    write_class_names(tmp_path / "x.rec", ["someone", "else"])
    convert(open_catalog(tmp_path / "made" / "train.rec"), tmp_path / "x.rec")
    assert read_class_names(tmp_path / "x.rec") is None
    # One of other data has too few names: said, and not used.
    write_class_names(tmp_path / "x.rec", ["someone", "else"])
    assert open_catalog(tmp_path / "x.rec").class_names is None
    assert "2 names for 10 classes" in caplog.text
    assert nameless.num_classes == 10


def test_a_list_that_someone_wrote_by_hand(tmp_path):
    (tmp_path / "train.names").write_bytes("\ufeffann\r\nzoë\r\n\r\n".encode())
    assert read_class_names(tmp_path / "train.rec") == ["ann", "zoë"]
    (tmp_path / "train.names").write_bytes(b"zo\xeb\n")
    with pytest.raises(ValueError, match="line 1 is not text in UTF-8"):
        read_class_names(tmp_path / "train.rec")


def test_folders_stay_inside_the_folder():
    names = ["../../etc", "/abs", "..", "", ".hidden", "a/b", "a_b", "Ann", "ann", "ann"]
    found = folder_names(names, len(names))
    assert len(set(found)) == len(names)
    assert not any("/" in name or name.startswith(".") or not name for name in found)
    assert found[7:9] == ["Ann", "ann"]
    assert folder_names(None, 11)[:2] == ["00", "01"]
