"""Groups of people and of images, and what is wrong with a file of them."""

import numpy as np
import pytest

from kappaface_dist.evaluation.sets.group_file import read_groups


def written(tmp_path, text):
    path = tmp_path / "groups.txt"
    path.write_text(text)
    return path


def test_by_person(tmp_path):
    path = written(tmp_path, "person,group\n# a comment\nAnn Lee,x\nBob\ty\n\nNobody z\n")
    people = ["Ann Lee", "Bob", "Ann Lee", "Cy"]
    names, group_P2, num_unused = read_groups(path, people, 2)
    assert names == ["x", "y"]
    np.testing.assert_array_equal(group_P2, [[0, 1], [0, -1]])
    assert num_unused == 2  # the heading, and Nobody


@pytest.mark.parametrize("people", [None, ["0x", "1x", "2x", "3x"]])
def test_by_image(tmp_path, people):
    names, group_P2, num_unused = read_groups(written(tmp_path, "0 b\n3 a\n1 b\n"), people, 2)
    assert names == ["a", "b"]
    np.testing.assert_array_equal(group_P2, [[1, 1], [-1, 0]])
    assert num_unused == 0


def test_people_called_by_numbers_are_people(tmp_path):
    _, group_P2, _ = read_groups(written(tmp_path, "1 a\n"), ["1", "1", "0", "2"], 2)
    np.testing.assert_array_equal(group_P2, [[0, 0], [-1, -1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ann\n", "line 1 is 'Ann': expected a person or the number"),
        ("1 a\n1 b\n", "line 2: 1 is in group b, an earlier line has it in a"),
        ("Ann x\n", "none of its 1 keys is an image's number; no list of identities lies beside"),
        ("", "none of its 0 keys"),
    ],
)
def test_mistakes(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_groups(written(tmp_path, text), None, 2)
