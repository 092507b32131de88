"""Several labels of an image, from records put together by hand as MXNet lays them out."""

import numpy as np
import pytest

from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.label_vectors import with_all_labels
from kappaface_dist.data.sources.merged import merge_catalogs
from tests.unit.data.made_records import jpeg, vector_record, write_records, write_vectors

LABELS = [[0, 4, 2], [3, 1, 4], [4, 0, 1], [2, 3, 3]]


def opened(*paths, how="draw"):
    return with_all_labels(open_catalog([str(path) for path in paths], any_labels=True), how)


def test_all_labels_are_read_and_counted(tmp_path, caplog):
    first = write_vectors(tmp_path / "a.rec", LABELS)
    second = write_vectors(tmp_path / "b.rec", [[5, 0, 1]])
    # Records of identities hold no image, and labels that mean something else.
    second.write_bytes(vector_record([7, 9], b"") + second.read_bytes())
    catalog = opened(first, second)
    np.testing.assert_array_equal(catalog.label_IL, [*LABELS, [5, 0, 1]])
    np.testing.assert_array_equal(catalog.label_I, [0, 3, 4, 2, 5])
    np.testing.assert_array_equal(catalog.count_C, [3, 3, 2, 3, 3, 1])
    assert catalog.label_IL.dtype == np.int32
    assert catalog.read(4) == jpeg(0, 16)
    assert "1 of 5 images name a class twice" in caplog.text
    # Without being asked the first is the class, as ever.
    plain = open_catalog([str(first), str(second)])
    assert plain.label_IL is None
    np.testing.assert_array_equal(plain.count_C, [1, 0, 1, 1, 1, 1])


def test_merged_datasets_number_all_labels_anew(tmp_path):
    parts = {
        name: opened(write_vectors(tmp_path / f"{name}.rec", labels))
        for name, labels in (("a", [[0, 1], [2, 1]]), ("b", [[1, 0], [2, 0]]))
    }
    (tmp_path / "map").write_text("1\t2\n")  # b's class 2 is a's class 1
    merged = merge_catalogs(parts, [(str(tmp_path / "map"), "a", "b")])
    np.testing.assert_array_equal(merged.label_IL, [[0, 1], [2, 1], [4, 3], [1, 3]])
    np.testing.assert_array_equal(merged.count_C, [1, 3, 1, 2, 1])
    other = parts | {"b": opened(write_vectors(tmp_path / "c.rec", [[0, 1, 2]]))}
    with pytest.raises(ValueError, match="equally many labels an image: a 2, b 3"):
        merge_catalogs(other, [(str(tmp_path / "map"), "a", "b")])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [[0, 1], [1, 2], [2]],
            r"record 2 \(byte .* has 1 labels where those before have 2: every",
        ),
        ([[0], [1]], r"the images of .*x\.rec have one label each: leave data\.labels out"),
        ([[0, 1.5], [1, 0]], r"label 2 of .* record 0 .* is 1\.5: labels are whole numbers"),
        ([[0, 1], [-1, 0]], r"label 1 of .* record 1 .* is -1: labels are whole numbers"),
        ([[0, 1], [float("nan"), 0]], r"has label nan, labels are whole numbers"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message) as caught:
        opened(write_vectors(tmp_path / "x.rec", labels), how="mean")
    assert "\n" not in str(caught.value)


def test_parts_and_kinds_that_do_not_go_together(tmp_path):
    first = write_vectors(tmp_path / "a.rec", LABELS)
    with pytest.raises(ValueError, match=r"b\.rec record 0 .* has 1 labels where those before"):
        opened(first, write_records(tmp_path / "b.rec", [0, 1], 16))
    for person in "ab":
        (tmp_path / "photos" / person).mkdir(parents=True)
        (tmp_path / "photos" / person / "1.jpg").write_bytes(jpeg(0, 16))
    with pytest.raises(ValueError, match="is in no record: several labels of an image are read"):
        with_all_labels(open_catalog(tmp_path / "photos"), "draw")
