"""Who is in a verification set: the side file of a .bin, and what becomes of a wrong one."""

import json

import numpy as np
import pytest

from kappaface_dist.evaluation.sets.pair_file import read_pairs, write_pairs
from kappaface_dist.evaluation.sets.pair_names import names_path

PAYLOADS = [b"a1", b"a2", b"a1", b"b1", b"b1", b"b2", b"b2", b"c1"]
SAME = [True, False, True, False]
NAMES = [("ann", "ann"), ("ann", "bob|\n"), ("bob|\n", "bob|\n"), ("bob|\n", "ann's \udcff")]


def test_names_go_with_the_set(tmp_path):
    path = tmp_path / "set.bin"
    write_pairs(path, PAYLOADS, SAME, NAMES)
    pairs = read_pairs(path)
    assert [pairs.names.of_pair(i) for i in range(4)] == NAMES
    identity_P2 = pairs.names.identity_P2
    assert ((identity_P2[:, 0] == identity_P2[:, 1]) == np.array(SAME)).all()
    assert len(np.unique(identity_P2)) == 3
    # A set without names in its place has none, and not the old ones.
    write_pairs(path, PAYLOADS, SAME)
    assert not names_path(path).exists()
    assert read_pairs(path).names is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"sha256": "0"}, "it was written for another file"),
        ({"format": "other"}, "its format is 'other'"),
        ({"names": ["ann", "bob"]}, "its identities contradict the pairs"),
        ({"names": ["ann", "ann", "bob"]}, "its identities contradict the pairs"),
        ({"pairs": [[0, 0], [0, 0], [1, 1], [1, 2]]}, "its identities contradict the pairs"),
        ({"pairs": [[0, 0], [0, 1], [1, 1]]}, "its identities contradict the pairs"),
        ({"pairs": [[0, 0], [0, 1], [1, 1], [1, 10**30]]}, "it is damaged"),
        ({"pairs": "none"}, "it is damaged"),
        ({"pairs": None}, "it is damaged"),
    ],
)
def test_a_side_file_of_something_else_is_not_used(tmp_path, caplog, change, fault):
    path = tmp_path / "set.bin"
    write_pairs(path, PAYLOADS, SAME, NAMES)
    content = json.loads(names_path(path).read_text())
    names_path(path).write_text(json.dumps(content | change))
    assert read_pairs(path).names is None
    assert fault in caplog.text
    assert "is guessed" in caplog.text


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"{"])
def test_a_damaged_side_file_is_not_used(tmp_path, caplog, content):
    path = tmp_path / "set.bin"
    write_pairs(path, PAYLOADS, SAME, NAMES)
    names_path(path).write_bytes(content)
    assert read_pairs(path).names is None
    assert "it is damaged" in caplog.text
