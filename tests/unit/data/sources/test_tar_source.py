"""Shards as people's tools write them: dots in names, columns, links, files of other kinds."""

import io
import json
import tarfile

import pytest

from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.tar_source import TarSource


def write_tar(path, files):
    """A file for each (name, content); a TarInfo goes in as it is."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for entry in files:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            archive.addfile(info, io.BytesIO(entry[1]))
    return path


def found(path):
    """The bytes and the label of each image, read twice: the second time from the cache."""
    first, second = TarSource(path), TarSource(path)
    assert first.left_out == second.left_out
    return [(second.read(i), int(label)) for i, label in enumerate(second.label_I)]


# A file of each pair of names; "@" stands for the label of the first, "#" for that of the second.
FORMS = {
    "dots": "a 7.0 (crop).jpg, a 7.0 (crop).cls=@, 1.jpg, 1.cls=#",
    "one group of two": "Mr. A 1.jpg, Mr. A 1.cls=@, Mr. B 1.jpg, Mr. B 1.cls=#",
    "columns": '0.face.jpg, 0.cls=@, 1.jpg, 1.json={"cls": #}',
    "label in a column": "0.jpg, 0.id.cls=@, 1.jpg, 1.cls=#",
    "dots in folders": "v1.0/0.jpg, v1.0/0.cls=@, v1.1/0.jpg, v1.1/0.cls=#",
    "other formats": "0.JFIF, 0.cls=@, 1.tiff, 1.CLS=#",
    "marks and floats": '0.jpg, 0.cls=\ufeff@\r\n, 1.gif, 1.json={"label": #.0}',
    "labels at the end": "0.jpg, 1.jpg, 1.cls=#, 0.cls=@",
}


@pytest.mark.parametrize("files", FORMS.values(), ids=FORMS)
def test_every_form_is_read(tmp_path, files):
    pictures = iter([b"a 7", b"b 2"])
    entries = []
    for file in files.replace("@", "7").replace("#", "2").split(", "):
        name, equals, label = file.partition("=")
        entries.append((name, label.encode() if equals else next(pictures)))
    assert found(write_tar(tmp_path / "a.tar", entries)) == [(b"a 7", 7), (b"b 2", 2)]
    assert TarSource(tmp_path / "a.tar").left_out.total == 0


def test_what_is_not_taken_is_counted_and_named(tmp_path, caplog):
    link = tarfile.TarInfo("3.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "0.jpg"
    folder = tarfile.TarInfo("people")
    folder.type = tarfile.DIRTYPE
    path = write_tar(
        tmp_path / "a.tar",
        [
            folder,
            *[("0.jpg", b"a 0"), ("0.mask.png", b"mask"), ("0.txt", b"text"), ("0.cls", b"0")],
            *[("._0.jpg", b"of a Mac"), ("README", b"text"), ("9.cls", b"4"), link],
            *[("1.jpg", b"b 1"), ("1.cls", b"1")],
        ],
    )
    catalog = open_catalog(path)
    assert [catalog.read(i) for i in range(2)] == [b"a 0", b"b 1"]
    listed = {where.rpartition(" ")[2]: why for where, why in catalog.left_out.listed}
    assert listed == {
        "0.mask.png": "another picture of a sample",
        "0.txt": "neither an image nor a label by its name",
        "README": "neither an image nor a label by its name",
        "._0.jpg": "hidden",
        "9": "a label without an image",
        "3.jpg": "a link or a file with holes",
    }
    assert catalog.left_out.total == 6
    assert "neither an image nor a label by its name: 2" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("0.a.jpg", b"x"), ("0.b.jpg", b"y"), ("0.cls", b"1")], r"named 0: 0\.a\.jpg and 0\.b"),
        ([("0.jpg", b"x"), ("0.a.cls", b"1"), ("0.b.cls", b"2")], "image 0 has no label"),
        ([("0.jpg", b"x"), ("0.cls", b"1"), ("0.json", b'{"label": 2}')], "two labels for 0"),
        ([("0.jpg", b"x"), ("0.json", b'{"label": true}')], "not a class number"),
        ([("0.jpg", b"x"), ("0.json", b"[" * 100_000)], "not a class number"),
        ([("Mr. A.jpg", b"x"), ("Mr. B.jpg", b"y"), ("Mr. B.cls", b"2")], "image Mr. A has no"),
    ],
)  # fmt: skip
def test_what_could_be_meant_otherwise_is_refused(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        TarSource(write_tar(tmp_path / "a.tar", files))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.REGTYPE])
def test_headers_that_claim_gigabytes(tmp_path, kind):
    whole = write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.cls", b"1")]).read_bytes()
    claim = tarfile.TarInfo("1.jpg")
    claim.type, claim.size = kind, 60 << 30
    (tmp_path / "b.tar").write_bytes(whole[:2048] + claim.tobuf(tarfile.GNU_FORMAT) + whole[2048:])
    with pytest.raises(ValueError, match=r"b\.tar is (cut off|not a plain)"):
        TarSource(tmp_path / "b.tar")


@pytest.mark.parametrize("name", ["plain", "dots", "columns"])
def test_the_shards_of_the_cases(shared_cases, name):
    catalog = open_catalog(shared_cases / "tars" / f"{name}.tar")
    plain = open_catalog(shared_cases / "tars" / "plain.tar")
    assert catalog.label_I.tolist() == [0] * 4 + [1] * 4
    assert [catalog.read(i) for i in range(8)] == [plain.read(i) for i in range(8)]
    assert catalog.left_out.total == 0


def named_shard(path, labels):
    """A sample for each object that a .json holds."""
    texts = [(f"{i}.json", json.dumps(label).encode()) for i, label in enumerate(labels)]
    return write_tar(path, [*texts, *((f"{i}.jpg", b"x") for i in range(len(labels)))])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    {
        "one key": ([{"label": 1, "name": "zoë"}], [{"label": 0, "name": "ann"}], ["ann", "zoë"]),
        # What is said of the person goes before what may be said of the picture.
        "two keys": (
            [{"cls": 0, "identity": "ann", "name": "a.jpg"}, {"cls": 0, "identity": "ann"}],
            [{"cls": 1, "name": "c.jpg", "person": "bob"}], ["ann", "bob"],
        ),
        "of pictures": (
            [{"label": 0, "name": "a.jpg"}, {"label": 0, "name": "b.jpg"}],
            [{"label": 1, "name": "c.jpg"}], None,
        ),
        "two in two shards": ([{"label": 0, "name": "ann"}], [{"label": 0, "name": "eve"}], None),
        "of some only": ([{"label": 0, "name": "ann"}], [{"label": 1, "name": ""}], None),
        "numbers": ([{"label": 0, "name": 7}], [{"label": 1, "name": ["x"]}], None),
    }.values(),
)  # fmt: skip
def test_names_beside_the_labels(tmp_path, first, second, expected):
    named_shard(tmp_path / "a-0.tar", first)
    named_shard(tmp_path / "a-1.tar", second)
    for _ in range(2):  # from the shards, then from their cache
        assert open_catalog(str(tmp_path / "*.tar")).class_names == expected
    if expected:  # a file of names goes first
        (tmp_path / "a-0.names").write_text("x\ny\n")
        assert open_catalog(str(tmp_path / "*.tar")).class_names == ["x", "y"]


def test_json_of_webdataset_with_more_in_it(tmp_path):
    text = json.dumps({"name": "ann", "label": 3, "box": [1, 2]}).encode()
    assert found(write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.json", text)])) == [(b"x", 3)]
