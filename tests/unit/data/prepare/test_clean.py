"""A report on labels is acted upon, and only on the data that it is of."""

import json
import re

import numpy as np
import pytest

from kappaface_dist.data.prepare.clean import WRONG, clean_catalog, labels_digest
from kappaface_dist.data.prepare.convert import convert
from kappaface_dist.data.sources.catalog import open_catalog
from tests.commands import exit_line
from tests.unit.data.made_records import write_records

LABELS = [0, 0, 1, 1, 2, 2, 3, 3, 3]


def write_report(path, label_I, wrong=(), pairs=()):
    report = {
        "images": len(label_I),
        "classes": int(max(label_I)) + 1,
        "labels_sha256": labels_digest(np.array(label_I)),
        "wrong_images": [{"image": i} for i in wrong],
        "one_person": [{"classes": list(pair)} for pair in pairs],
    }
    path.write_text(json.dumps(report))
    return path


@pytest.fixture
def data(tmp_path):
    return write_records(tmp_path / "train.rec", LABELS, 16)


def test_images_are_left_out_and_classes_joined(data, tmp_path):
    catalog = open_catalog(data)
    # 3 is 1, and 1 is 0: all three are one person.
    report = write_report(tmp_path / "r.json", LABELS, wrong=[4, 8], pairs=[(1, 3), (0, 1)])
    cleaned = clean_catalog(catalog, report)
    assert (cleaned.num_wrong, cleaned.joined) == (2, [(1, 0), (3, 0)])
    written = convert(cleaned.catalog, tmp_path / "clean.rec", renumber=True, drop_labels=[WRONG])
    assert (written.num_images, written.with_dropped_labels) == (7, {WRONG: 2})
    found = open_catalog(tmp_path / "clean.rec")
    assert found.label_I.tolist() == [0, 0, 0, 0, 1, 0, 0]
    kept = [i for i in range(len(LABELS)) if i not in (4, 8)]
    assert [found.read(n) for n in range(7)] == [catalog.read(i) for i in kept]
    # The data that was read is as it was.
    assert catalog.label_I.tolist() == LABELS


def test_a_report_that_finds_nothing_changes_nothing(data, tmp_path):
    cleaned = clean_catalog(open_catalog(data), write_report(tmp_path / "r.json", LABELS))
    assert cleaned.catalog.label_I.tolist() == LABELS
    assert (cleaned.num_wrong, cleaned.joined) == (0, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels_sha256": "0"}, r"r\.json is of 9 images with other labels, and the data has 9"),
        ({"wrong_images": [{"image": 9}]}, r"r\.json is not a labels\.json"),
        ({"one_person": [{"classes": [1, 4]}]}, "is not a labels.json"),
        ({"one_person": [{"classes": [1]}]}, "is not a labels.json"),
        ({"wrong_images": None}, "is not a labels.json"),
    ],
)
def test_other_reports_are_one_sentence(data, tmp_path, change, message):
    path = write_report(tmp_path / "r.json", LABELS)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    line = exit_line("tools/convert_record.py", data, tmp_path / "out.rec", "--clean", path)
    assert re.search(message, line)
    assert not (tmp_path / "out.rec").exists()


def test_what_is_no_json_is_one_sentence(data, tmp_path):
    (tmp_path / "r.json").write_bytes(b"\x80nothing")
    with pytest.raises(ValueError, match=r"r\.json is not a labels\.json of tools/label_report"):
        clean_catalog(open_catalog(data), tmp_path / "r.json")
