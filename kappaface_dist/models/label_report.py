"""The report on a dataset's labels: labels.json, and a sheet of pictures to decide by.

Shapes: I images, C classes, H W image size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.commands import write_json
from kappaface_dist.data.images import decode_image
from kappaface_dist.data.prepare.clean import labels_digest
from kappaface_dist.data.prepare.sheet import TILE, contact_sheet
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.evaluation.label_noise import PROBABLE, LabelNoise
from kappaface_dist.whole_files import whole_file

# On the sheet: of each kind the most probable.
SHOWN_IMAGES, SHOWN_CLASSES = 40, 10
Tile = tuple[np.ndarray, Sequence[str]]


def describe_labels(catalog: Catalog, noise: LabelNoise) -> dict[str, Any]:
    """What labels.json holds: entries of probability 0.5 or more, the most probable first."""
    names = catalog.class_names

    def called(label: int) -> str:
        return names[label] if names is not None and 0 <= label < len(names) else str(label)

    wrong = [int(i) for i in _most_probable(noise.wrong_I)]
    return {
        "images": catalog.num_images,
        "classes": catalog.num_classes,
        "labels_sha256": labels_digest(catalog.label_I),
        "wrong_images": [
            {
                "image": i,
                "where": catalog.where(i),
                "class": called(int(catalog.label_I[i])),
                "nearest_class": called(int(noise.nearest_I[i])),
                "probability": round(float(noise.wrong_I[i]), 4),
                "cosine": round(float(noise.own_I[i]), 4),
                "nearest_cosine": round(float(noise.other_I[i]), 4),
            }
            for i in wrong
        ],
        "two_people": [
            {
                "class": int(c),
                "name": called(int(c)),
                "probability": round(float(noise.two_C[c]), 4),
                "second_person": np.flatnonzero(_of_class(catalog, c) & noise.second_I).tolist(),
            }
            for c in _most_probable(noise.two_C)
        ],
        "one_person": [
            {
                "classes": [first, second],
                "names": [called(first), called(second)],
                "probability": round(probability, 4),
            }
            for first, second, probability in noise.one
        ],
        "notes": noise.notes,
    }


def write_label_report(
    folder: Path, catalog: Catalog, noise: LabelNoise, facts: dict[str, Any]
) -> dict[str, Any]:
    """Write labels.json and, where anything was found, sheet.png; returns what labels.json holds.

    Args:
        facts: of the model, in front.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = facts | describe_labels(catalog, noise)
    write_json(str(folder / "labels.json"), report)
    tiles = _tiles(catalog, noise, report)
    sheet = folder / "sheet.png"
    sheet.unlink(missing_ok=True)
    if tiles:
        with whole_file(sheet) as unfinished:
            contact_sheet(tiles).save(unfinished, format="PNG")
    return report


def _most_probable(probability_X: np.ndarray) -> np.ndarray:
    found = np.flatnonzero(probability_X >= PROBABLE)
    return found[np.argsort(-probability_X[found], kind="stable")]


def _of_class(catalog: Catalog, label: int) -> np.ndarray:
    return catalog.label_I == label


def _tiles(catalog: Catalog, noise: LabelNoise, report: dict[str, Any]) -> list[Tile]:
    """Half a row for an image (it, two of its class, two of the nearest), a row for the others."""
    good_I = ~(noise.wrong_I >= PROBABLE)

    def some(mask_I: np.ndarray, number: int, text: str) -> list[Tile]:
        index = np.flatnonzero(mask_I & good_I)[:number].tolist()
        return [_tile(catalog, i, text) for i in index] + [_blank()] * (number - len(index))

    tiles: list[Tile] = []
    for line in report["wrong_images"][:SHOWN_IMAGES]:
        i = line["image"]
        text = f"{line['probability']:.0%} not {line['class']}"
        own, nearest = int(catalog.label_I[i]), int(noise.nearest_I[i])
        tiles.append(_tile(catalog, i, text, f"image {i}"))
        tiles += some(_of_class(catalog, own), 2, f"is {line['class']}")
        tiles += some(_of_class(catalog, nearest), 2, f"nearest: {line['nearest_class']}")
    tiles += [_blank()] * (-len(tiles) % 10)
    for line in report["two_people"][:SHOWN_CLASSES]:
        text = f"{line['probability']:.0%} two: {line['name']}"
        mask_I = _of_class(catalog, line["class"])
        tiles += some(mask_I & ~noise.second_I, 5, text) + some(mask_I & noise.second_I, 5, text)
    for line in report["one_person"][:SHOWN_CLASSES]:
        for label, name in zip(line["classes"], line["names"], strict=True):
            text = f"{line['probability']:.0%} one: {name}"
            tiles += some(_of_class(catalog, label), 5, text)
    return tiles


def _tile(catalog: Catalog, index: int, *lines: str) -> Tile:
    try:
        return decode_image(catalog.read(index), TILE), lines
    except (ValueError, OSError):
        return np.full((TILE, TILE, 3), 128, np.uint8), ["not readable", *lines][:2]


def _blank() -> Tile:
    return np.full((TILE, TILE, 3), 255, np.uint8), []
