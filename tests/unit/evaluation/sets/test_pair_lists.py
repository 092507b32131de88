"""Which pairs a folder gives, and lists in LFW's format."""

import itertools

import numpy as np
import pytest

from kappaface_dist.evaluation.folds import folds_of_one_kind
from kappaface_dist.evaluation.sets.pair_lists import (
    all_pairs,
    images_by_identity,
    in_folds,
    listed_pairs,
)


def folder(root, counts, name="{identity}_{number:04d}.jpg"):
    for identity, count in counts.items():
        (root / identity).mkdir(parents=True)
        for number in range(1, count + 1):
            (root / identity / name.format(identity=identity, number=number)).touch()
    return root


def test_all_same_pairs_and_as_many_different_in_alternation(tmp_path):
    identities = images_by_identity(folder(tmp_path, {"ann": 4, "bob": 5, "cy": 1}))
    pairs = all_pairs(identities, seed=0)
    same = [{first, second} for first, second, flag in pairs if flag]
    different = [{first, second} for first, second, flag in pairs if not flag]
    expected = [set(p) for images in identities.values() for p in itertools.combinations(images, 2)]
    assert sorted(map(sorted, same)) == sorted(map(sorted, expected))
    assert len(different) == len(same) == 16
    assert len(set(map(frozenset, different))) == 16
    assert all(len({path.parent for path in pair}) == 2 for pair in different)
    assert [flag for *_, flag in pairs] == [True, False] * 16
    assert pairs == all_pairs(identities, seed=0) != all_pairs(identities, seed=1)


def test_few_different_pairs_are_all_taken_and_spread(tmp_path):
    identities = images_by_identity(folder(tmp_path, {"ann": 9, "bob": 1}))
    flags = [flag for *_, flag in all_pairs(identities, seed=0)]
    assert (flags.count(True), flags.count(False)) == (36, 9)
    assert all(flags[start : start + 5].count(False) == 1 for start in range(0, 45, 5))


def test_different_pairs_are_drawn_evenly(tmp_path):
    # Of 3 x 100 possible pairs of identities each is as likely: 4 standard deviations around it.
    identities = images_by_identity(folder(tmp_path, {"ann": 10, "bob": 10, "cy": 10}))
    counts = dict.fromkeys(itertools.combinations(("ann", "bob", "cy"), 2), 0)
    for seed in range(20):
        for first, second, flag in all_pairs(identities, seed):
            if not flag:
                counts[tuple(sorted((first.parent.name, second.parent.name)))] += 1
    assert sum(counts.values()) == 20 * 135
    assert all(abs(count - 900) < 4 * (2700 * 2 / 9) ** 0.5 for count in counts.values())


NAMES = ["{identity}_{number:04d}.jpg", "{number}.PGM", "{number:02d}.png"]


@pytest.mark.parametrize("name", NAMES)
def test_list_in_lfw_format(tmp_path, name):
    identities = images_by_identity(folder(tmp_path / "lfw", {"ann_b": 3, "bob": 3}, name))
    path = tmp_path / "pairs.txt"
    path.write_text("2\t1\nann_b\t1\t3\nann_b\t2\tbob\t1\nbob\t2\t3\nbob\t3\tann_b\t1\n")
    pairs = [
        (first.parent.name, int(first.stem[-1]), second.parent.name, int(second.stem[-1]), same)
        for first, second, same in listed_pairs(path, identities)
    ]
    assert pairs == [
        ("ann_b", 1, "ann_b", 3, True),
        ("ann_b", 2, "bob", 1, False),
        ("bob", 2, "bob", 3, True),
        ("bob", 3, "ann_b", 1, False),
    ]


def test_the_real_lfw_list(shared_data, tmp_path):
    path = shared_data / "verification" / "lfw_pairs.txt"
    # Independently of the reader: three fields are a same pair, four a different one.
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    wanted = {(row[0], row[1]) for row in rows} | {(row[-2], row[-1]) for row in rows if row[3:]}
    wanted |= {(row[0], row[2]) for row in rows if not row[3:]}
    identities = {}
    for name, number in sorted(wanted):
        identities.setdefault(name, []).append(tmp_path / name / f"{name}_{int(number):04d}.jpg")
    pairs = listed_pairs(path, identities)
    assert [same for *_, same in pairs] == [len(row) == 3 for row in rows]
    assert sum(same for *_, same in pairs) == 3000
    for row, (first, second, _) in zip(rows, pairs, strict=True):
        assert first.stem == f"{row[0]}_{int(row[1]):04d}"
        assert second.stem == f"{row[0] if len(row) == 3 else row[2]}_{int(row[-1]):04d}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line is '', expected the number of folds"),
        ("ann 1 3\n", "the first line is 'ann 1 3'"),
        ("2 1\nann 1 2\n", "announces 2 folds of twice 1 pairs, the file has 1 pairs instead of 4"),
        ("1\nann 1 2\nann 1 2\n", "line 3 has 3 fields, expected name a other b"),
        ("1\nann 1 9\nann 1 bob 1\n", "line 2 names image 9 of ann, .* no ann/ann_0009"),
        ("1\nann 1 x\nann 1 bob 1\n", "line 2 names image x of ann"),
    ],
)
def test_bad_lists_are_named(tmp_path, text, message):
    identities = images_by_identity(folder(tmp_path / "lfw", {"ann": 2, "bob": 2}))
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        listed_pairs(path, identities)


def test_folders_without_pairs_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        images_by_identity(tmp_path / "none")
    with pytest.raises(ValueError, match="has no sub-folder with images"):
        images_by_identity(tmp_path)
    for counts in ({"ann": 5}, {"bob": 1, "cy": 1}):
        identities = images_by_identity(folder(tmp_path / str(len(counts)), counts))
        with pytest.raises(ValueError, match="expected two identities or more and two images"):
            all_pairs(identities, seed=0)


def named(pairs):
    """(name, number, name, number, same) of each pair."""
    return [
        (a.parent.name, int(a.stem.split("_")[-1]), b.parent.name, int(b.stem.split("_")[-1]), same)
        for a, b, same in pairs
    ]


LIST = "1\t2\nann_b\t1\t3\nbob\t2\t3\nann_b\t2\tbob\t1\nbob\t3\tann_b\t1\n"
PAIRS = [
    ("ann_b", 1, "ann_b", 3, True),
    ("bob", 2, "bob", 3, True),
    ("ann_b", 2, "bob", 1, False),
    ("bob", 3, "ann_b", 1, False),
]


@pytest.mark.parametrize(
    "content",
    [
        LIST.encode(),
        b"\xef\xbb\xbf" + LIST.encode() + b"\n\n",
        LIST.encode("utf-16"),
        LIST.replace("\n", "\r\n").encode() + b"  \r\n",
        LIST.replace("\t", "  ").encode(),
        LIST.replace("\n", " \t\n").replace("1\t2", "2", 1).encode(),
        # Different pairs first.
        b"2\n" + b"".join(line + b"\n" for line in LIST.encode().split(b"\n")[:0:-1]),
    ],
    ids=["plain", "mark", "utf-16", "windows", "spaces", "tabs at the ends", "other order"],
)
def test_a_list_in_every_spelling(tmp_path, content):
    identities = images_by_identity(folder(tmp_path / "lfw", {"ann_b": 3, "bob": 3}))
    path = tmp_path / "pairs.txt"
    path.write_bytes(content)
    found = named(listed_pairs(path, identities))
    assert found in (PAIRS, PAIRS[::-1])


@pytest.mark.parametrize("separator", ["\t", " "])
def test_names_with_spaces_and_numbers(tmp_path, separator):
    counts = {"Ann van Lee": 3, "Bob 2": 3, "12": 3, "José": 2}
    identities = images_by_identity(folder(tmp_path / "lfw", counts, "{number}.jpg"))
    rows = [
        ("Ann van Lee", 1, 3),
        ("12", 1, 2),
        ("José", 1, 2),
        ("Ann van Lee", 2, "Bob 2", 1),
        ("Bob 2", 3, "12", 1),
        ("12", 2, "Ann van Lee", 1),
    ]
    text = "".join(separator.join(map(str, row)) + "\n" for row in rows)
    (tmp_path / "pairs.txt").write_text("3\n" + text, encoding="utf-8")
    found = named(listed_pairs(tmp_path / "pairs.txt", identities))
    assert found == [
        (row[0], row[1], row[0] if len(row) == 3 else row[2], row[-1], len(row) == 3)
        for row in rows
    ]


def test_what_could_be_read_in_two_ways_is_refused(tmp_path):
    identities = images_by_identity(
        folder(tmp_path / "lfw", {"a": 3, "a 1 b": 3, "b 2 c": 3, "c": 3}, "{number}.jpg")
    )
    (tmp_path / "pairs.txt").write_text("1\na 1 2\na 1 b 2 c 3\n")
    with pytest.raises(ValueError, match=r"line 3 .* can be read as 2 pairs: separate .* by tabs"):
        listed_pairs(tmp_path / "pairs.txt", identities)


def test_two_images_of_one_number_are_refused(tmp_path):
    folder(tmp_path / "lfw", {"ann": 2, "bob": 2}, "{number}.jpg")
    (tmp_path / "lfw" / "ann" / "01.png").touch()
    (tmp_path / "pairs.txt").write_text("1\nann 1 2\nann 1 bob 1\n")
    with pytest.raises(ValueError, match=r"line 2 .* has 01\.png and 1\.jpg: keep one"):
        listed_pairs(tmp_path / "pairs.txt", images_by_identity(tmp_path / "lfw"))


def test_text_in_another_encoding_is_named(tmp_path):
    identities = images_by_identity(folder(tmp_path / "lfw", {"ann": 2, "bob": 2}))
    (tmp_path / "pairs.txt").write_bytes("1\nann 1 2\nJosé 1 bob 1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="line 3 is not text in UTF-8: save the file as UTF-8"):
        listed_pairs(tmp_path / "pairs.txt", identities)


@pytest.mark.parametrize("kinds", ["SD", "DS", "SDSDSD", "SSDD"])
def test_lists_are_written_with_both_kinds_in_each_tenth(kinds):
    pairs = [(kind, number, kind == "S") for kind in kinds for number in range(60)]
    ordered, remark = in_folds(pairs)
    assert sorted(ordered) == sorted(pairs)
    assert "folds would hold one kind of pairs only" in remark
    assert folds_of_one_kind(np.array([pair[2] for pair in ordered])) == 0
    again, remark = in_folds(ordered)
    assert (again, remark) == (ordered, "")


@pytest.mark.parametrize("name", ["one_fold", "one_fold_bom"])
def test_the_one_fold_lists_of_the_cases(shared_cases, name):
    place = shared_cases / "lists"
    pairs = listed_pairs(place / f"{name}.txt", images_by_identity(place / "photos"))
    assert [same for *_, same in pairs] == [True] * 60 + [False] * 60
    ordered, _ = in_folds(pairs)
    assert folds_of_one_kind(np.array([same for *_, same in ordered])) == 0
