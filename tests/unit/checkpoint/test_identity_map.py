"""Identity maps: written by name, read with every mistake named."""

import pytest

from kappaface_dist.checkpoint.identity_map import read_identity_map, write_identity_map
from kappaface_dist.data.sources.class_names import write_class_names
from kappaface_dist.data.sources.recordio import RecordWriter
from tests.commands import python


def test_written_by_name_and_read_back(tmp_path):
    old, new = ["ann", "bob", "cyd", "dan"], ["cyd", "eve", "ann"]
    assert write_identity_map(tmp_path / "map.tsv", old, new) == 2
    assert read_identity_map(tmp_path / "map.tsv", 4, 3).tolist() == [2, -1, 0]


def test_the_command_takes_lists_of_names(tmp_path):
    (tmp_path / "old").write_text("ann\nbob\n")
    (tmp_path / "new").write_text("bob\ncyd\ndan\n")
    done = python("tools/map_identities.py", *(tmp_path / n for n in ("old", "new", "map.tsv")))
    assert done.stdout == "1 identities stay, 1 go, 2 are new\n", done.stderr
    assert read_identity_map(tmp_path / "map.tsv", 2, 3).tolist() == [1, -1, -1]


def test_the_command_takes_records_that_know_their_names(tmp_path):
    for folder, names in (("old", ["ann", "bob"]), ("new", ["bob", "c\td", "dan"])):
        with RecordWriter(tmp_path / folder / "train") as writer:
            for label in range(len(names)):
                writer.write(label, b"picture")
        write_class_names(tmp_path / folder / "train.rec", names)
    places = (tmp_path / "old" / "train.rec", tmp_path / "new", tmp_path / "map.tsv")
    done = python("tools/map_identities.py", *places)
    assert done.stdout == "1 identities stay, 1 go, 2 are new\n", done.stderr
    assert read_identity_map(tmp_path / "map.tsv", 2, 3).tolist() == [1, -1, -1]
    (tmp_path / "old" / "train.names").unlink()
    done = python("tools/map_identities.py", *places)
    assert (done.returncode, "has no names beside it (train.names)" in done.stderr) == (1, True)


def test_names_with_line_breaks_stay_on_their_line(tmp_path):
    assert write_identity_map(tmp_path / "map.tsv", ["a\nb", "c\udcff"], ["c\udcff", "a\nb"]) == 2
    assert read_identity_map(tmp_path / "map.tsv", 2, 2).tolist() == [1, 0]
    (tmp_path / "map.tsv").write_bytes(b"\xef\xbb\xbf0\t1\tann\r\n\r\n")
    assert read_identity_map(tmp_path / "map.tsv", 2, 2).tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\n", "line 1 is 'a.*expected the numbers of two classes"),
        ("0\t0\n7\t1\n", "line 2 names earlier class 7, and there are 4"),
        ("0\t3\n", "line 1 names present class 3, and there are 3"),
        ("0\t1\n0\t2\n", "line 2 names earlier class 0, as line 1 does: keep one"),
        ("0\t1\n1\t1\n", "line 2 names present class 1, as line 1 does: keep one"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    (tmp_path / "map.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_identity_map(tmp_path / "map.tsv", 4, 3)


def test_a_name_of_two_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the new list names 'ann' twice"):
        write_identity_map(tmp_path / "map.tsv", ["bob"], ["ann", "ann"])
