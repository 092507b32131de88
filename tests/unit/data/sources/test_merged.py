"""Several datasets as one: who is whom against a list of who was photographed."""

import itertools

import numpy as np
import pytest

from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.class_names import write_class_names
from kappaface_dist.data.sources.merged import merge_catalogs
from tests.unit.data.made_records import write_records

# Who each class of a dataset is, and the labels of its images; class 2 of b has none.
WHO = {"a": "PQRS", "b": "TQ-P", "c": "UTR"}
LABELS = {"a": [3, 0, 1, 2, 0, 1], "b": [0, 1, 1, 3, 0], "c": [2, 1, 0]}


@pytest.fixture
def parts(tmp_path):
    found = {}
    for number, (name, labels) in enumerate(LABELS.items()):
        folder = tmp_path / name
        folder.mkdir()
        path = write_records(folder / "train.rec", labels, 16 + 4 * number)
        write_class_names(path, [f"{who} in {name}" for who in WHO[name]])
        found[name] = open_catalog(path)
    return found


def write_map(path, first, second, more=""):
    """Of everybody who is in both, as find_overlap.py writes it."""
    lines = [
        f"{one}\t{other}\t{who}\t{who}\t0.9\t1e-9\n"
        for (one, who), (other, also) in itertools.product(
            enumerate(WHO[first]), enumerate(WHO[second])
        )
        if who == also
    ]
    path.write_text("# class of the first set, class of the second\n" + "".join(lines) + more)
    return str(path), first, second


@pytest.mark.parametrize("names", ["ab", "abc", "cab"])
def test_two_images_are_of_one_class_where_they_show_one_person(parts, names, tmp_path, caplog):
    caplog.set_level("INFO")
    pairs = itertools.combinations(reversed(names), 2)  # a map may have its columns either way
    maps = [write_map(tmp_path / f"{x}{y}", x, y) for x, y in pairs]
    given = {name: parts[name] for name in names}
    pictures = [part.read(i) for part in given.values() for i in range(part.num_images)]
    whose = [WHO[name][label] for name in names for label in LABELS[name]]
    one = merge_catalogs(given, maps)
    same = np.array([[x == y for x in whose] for y in whose])
    np.testing.assert_array_equal(one.label_I[:, None] == one.label_I, same)
    # The first dataset's numbers stay, and no number is left without a person.
    np.testing.assert_array_equal(one.label_I[: len(LABELS[names[0]])], LABELS[names[0]])
    # But that of b's class without images, where others come after it.
    empty = set(range(one.num_classes)) - set(one.label_I.tolist())
    assert len(empty) == ("c" in names and names[-1] == "c")
    np.testing.assert_array_equal(one.count_C, np.bincount(one.label_I))
    assert [one.read(i) for i in range(one.num_images)] == pictures
    np.testing.assert_array_equal(np.concatenate([s.label_I for s in one.sources]), one.label_I)
    for label, who in zip(one.label_I, whose, strict=True):
        first = next(name for name in names if who in WHO[name])
        assert one.class_names[label] == f"{who} in {first}"
    for place, name in enumerate(names):
        before = {who for other in names[:place] for who in WHO[other]}
        joined = [who for who in WHO[name] if who in before]
        images = sum(WHO[name][label] in before for label in LABELS[name])
        assert one.merged[name] == {
            "classes": len(WHO[name]),
            "images": len(LABELS[name]),
            "joined_classes": len(joined),
            "joined_images": images,
        }
        if place:
            text = f"data.merge: {len(joined)} of {len(WHO[name])} classes of {name}, with {images}"
            assert text in caplog.text


def test_one_dataset_stays_as_it_is(parts):
    assert merge_catalogs({"": parts["a"]}, []) is parts["a"]


def test_a_map_that_names_nobody_is_said(parts, tmp_path, caplog):
    (tmp_path / "map").write_text("# nobody\n")
    one = merge_catalogs({"a": parts["a"], "c": parts["c"]}, [(str(tmp_path / "map"), "a", "c")])
    assert one.num_classes == 7
    assert "WARNING" in [record.levelname for record in caplog.records]
    assert "0 of 3 classes of c, with 0 of 3 images, are classes of a" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("4\t1\n", "line 4 names class 4 of a, and there are 4: classes run from 0 to 3"),
        ("2\t-1\n", "line 4 names class -1 of b, and there are 4"),
        ("2\t2\n", "names class 2 of b, which has no images: is it the map of a and b?"),
        ("2\t1\n", "line 4 names class 1 of b, as line 3 does: keep one of them"),
        ("1\t0\n", "line 4 names class 1 of a, as line 3 does: keep one of them"),
        ("x\t0\n", "line 4 is 'x\\t0': expected the numbers of two classes"),
        ("3\n", "line 4 is '3': expected the numbers of two classes"),
    ],
)
def test_a_map_with_a_mistake_is_refused_in_one_sentence(parts, tmp_path, line, message):
    given = {name: parts[name] for name in "ab"}
    with pytest.raises(ValueError, match=r".") as caught:
        merge_catalogs(given, [write_map(tmp_path / "map", "a", "b", line)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_maps_that_contradict_each_other_are_refused(parts, tmp_path):
    """c's U is said to be b's T, whom c has too."""
    maps = [write_map(tmp_path / f"{x}{y}", x, y) for x, y in ("ab", "ac")]
    (tmp_path / "wrong").write_text("0\t1\n1\t2\n")
    wrong = (str(tmp_path / "wrong"), "b", "c")  # Q is c's R, who is a's R
    with pytest.raises(ValueError, match=r"together make classes 1 and 2 of a one person: correct"):
        merge_catalogs(parts, [*maps, wrong])
    with pytest.raises(ValueError, match="there is no file"):
        merge_catalogs(parts, [(str(tmp_path / "absent"), "a", "b")])
