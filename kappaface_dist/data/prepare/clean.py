"""Acts on a report of tools/label_report.py: leaves out images, joins classes.

Shapes: I images, C classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.data.sources.catalog import Catalog

# No dataset's label: marks what is to be left out.
WRONG = -(2**31)


@dataclass(frozen=True)
class Cleaned:
    """Attributes:
    catalog: the dataset, with the label WRONG for images to leave out, and one for joined classes.
    num_wrong: images to leave out.
    joined: (class, the lower class that it becomes).
    """

    catalog: Catalog
    num_wrong: int
    joined: list[tuple[int, int]]


def labels_digest(label_I: np.ndarray) -> str:
    """SHA-256 over the labels in order, in hexadecimal."""
    return sha256(np.ascontiguousarray(label_I, dtype="<i4").data).hexdigest()


def clean_catalog(catalog: Catalog, path: Path) -> Cleaned:
    """The dataset as a report says that it should be; lines taken out of the report do not count.

    Raises:
        ValueError: it is no such report, or one of other data.
        OSError: it cannot be read.
    """
    report = _read(path)
    if report["labels_sha256"] != labels_digest(catalog.label_I):
        raise ValueError(
            f"{path} is of {report['images']} images with other labels, and the data has"
            f" {catalog.num_images}: make a report of this data with tools/label_report.py"
        )
    wrong = sorted({int(line["image"]) for line in report["wrong_images"]})
    pairs = [line["classes"] for line in report["one_person"]]
    label_I, joined = clean_labels(catalog.label_I, wrong, pairs)
    return Cleaned(replace(catalog, label_I=label_I), len(wrong), joined)


def clean_labels(
    label_I: np.ndarray, wrong: Sequence[int], pairs: Sequence[Sequence[int]]
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """(int32 labels, WRONG for wrong images and one for the classes of a pair; Cleaned.joined)."""
    root_C = np.arange(label_I.max() + 1)
    for pair in pairs:
        first, second = sorted(int(root_C[c]) for c in pair)
        root_C[root_C == second] = first
    clean_I = root_C[label_I].astype(np.int32)
    clean_I[list(wrong)] = WRONG
    joined = [(int(c), int(root_C[c])) for c in np.flatnonzero(root_C != np.arange(len(root_C)))]
    return clean_I, joined


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        num_images, num_classes = int(report["images"]), int(report["classes"])
        assert isinstance(report["labels_sha256"], str)
        images = [int(line["image"]) for line in report["wrong_images"]]
        classes = [int(c) for line in report["one_person"] for c in line["classes"]]
        assert all(len(line["classes"]) == 2 for line in report["one_person"])
        assert all(0 <= image < num_images for image in images)
        assert all(0 <= c < num_classes for c in classes)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{path} is not a labels.json of tools/label_report.py ({type(error).__name__}"
            f" {error}): give the file that it wrote, from which whole entries may be deleted"
        ) from error
    return report
