"""Text as people's editors leave it."""

import pytest

from kappaface_dist.text_files import read_lines, shown


@pytest.mark.parametrize(
    "content",
    [
        b"ann\nzo\xc3\xab \n",
        b"\xef\xbb\xbfann\r\nzo\xc3\xab \r\n\r\n",
        b"ann\rzo\xc3\xab ",
        "\ufeffann\nzoë \n \n\t\n".encode("utf-16-le"),
        "\ufeffann\nzoë \n".encode("utf-16-be"),
    ],
)
def test_marks_line_ends_and_blank_last_lines(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    assert read_lines(tmp_path / "a.txt") == ["ann", "zoë "]


def test_only_line_ends_end_lines(tmp_path):
    # str.splitlines() would cut these names.
    names = ["a\x0bb", "c\x85d", "e\u2028f", "", "g"]
    (tmp_path / "a.txt").write_text("\n".join(names), encoding="utf-8")
    assert read_lines(tmp_path / "a.txt") == names


def test_other_encodings_and_absent_files_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("ann\nzoë\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt line 2 is not text in UTF-8"):
        read_lines(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"there is no file .*b\.txt"):
        read_lines(tmp_path / "b.txt")


def test_a_name_is_shown_on_one_line():
    assert shown("ann\n lee\udcff") == "ann lee\\udcff"
