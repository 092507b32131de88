"""A small template benchmark of made-up identities, in the layout of `template_lists.py`.

The official images may not be passed on; this set has their structure: stills and short videos,
faces turned and shifted in a larger picture with their five points, two galleries of different
people, probes of both, 1:1 pairs of templates.

Shapes: five points of x, y in pixels.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.data.align import REFERENCE_52, warp
from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.made_up_faces.dataset import FIRST_UNSEEN, render_face
from kappaface_dist.made_up_faces.identity import numbered_generator

PLACEMENT = 71  # the stream of random numbers that is this set's own
SIZE = 160  # of the loose crops, in pixels
TEMPLATES_PER_IDENTITY = 3  # the first is the gallery's, the others are probes
MEDIA = ((1, 1), (1, 3), (3, 2))  # frames of each medium, by template: still or video
HEADER = "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID"


def write_template_set(
    root: str | Path,
    *,
    name: str,
    num_identities: int,
    seed: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Write root/loose_crop and root/meta.

    Args:
        name: prefix of the list files.
        num_identities: half of them in each gallery.
        progress: wraps the identities, for a progress bar.

    Returns:
        The numbers of images, templates and pairs.

    Raises:
        ValueError: num_identities is below 4.
    """
    if num_identities < 4:
        raise ValueError(f"{num_identities} people are too few: two galleries of two need 4")
    root = Path(root)
    (root / "loose_crop").mkdir(parents=True, exist_ok=True)
    (root / "meta").mkdir(parents=True, exist_ok=True)
    images: list[str] = []
    points: list[str] = []
    rows: dict[str, list[str]] = {"gallery_G1": [], "gallery_G2": [], "probe_mixed": []}
    for identity in progress(range(num_identities)):
        photo = media = 0
        for number in range(TEMPLATES_PER_IDENTITY):
            template = identity * TEMPLATES_PER_IDENTITY + number + 1
            for frames in MEDIA[number]:
                media += 1
                for _ in range(frames):
                    file = f"{len(images) + 1}.jpg"
                    pixels, points_52, score = _place(seed, FIRST_UNSEEN + identity, photo)
                    photo += 1
                    (root / "loose_crop" / file).write_bytes(encode_jpeg(pixels, quality=90))
                    images.append(f"{file} {template} {identity * 100 + media}")
                    numbers = " ".join(f"{value:.3f}" for value in points_52.ravel())
                    points.append(f"{file} {numbers} {score:.4f}")
                    place = "probe_mixed" if number else f"gallery_G{identity % 2 + 1}"
                    rows[place].append(f"{template},{identity + 1},{file},{media}")
    pairs = _pairs(seed, num_identities)
    meta = {f"{name}_1N_{key}.csv": [HEADER, *lines] for key, lines in rows.items()}
    meta |= {
        f"{name}_face_tid_mid.txt": images,
        f"{name}_name_5pts_score.txt": points,
        f"{name}_template_pair_label.txt": pairs,
    }
    for file, lines in meta.items():
        (root / "meta" / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "images": len(images),
        "templates": num_identities * TEMPLATES_PER_IDENTITY,
        "pairs": len(pairs),
        "people": num_identities,
    }


def _place(seed: int, identity: int, photo: int) -> tuple[np.ndarray, np.ndarray, float]:
    """A rendered face, which is aligned, turned and shifted into a larger picture."""
    rng = numbered_generator(seed, PLACEMENT, identity, photo)
    angle, scale = rng.uniform(-0.4, 0.4), rng.uniform(0.7, 1.1)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.full(2, (SIZE - 1) / 2) + rng.uniform(-12, 12, 2)
    shift = centre - linear @ REFERENCE_52.mean(axis=0)
    matrix_23 = np.concatenate([linear, shift[:, None]], axis=1)
    pixels = warp(render_face(seed, identity, photo), matrix_23, SIZE, SIZE)
    return pixels, REFERENCE_52 @ linear.T + shift, float(rng.uniform(0.6, 1.0))


def _pairs(seed: int, num_identities: int) -> list[str]:
    """Gallery templates against every probe template of 1:1, as IJB's pairs are made."""
    lines = []
    for first in range(num_identities):
        for second in range(num_identities):
            for number in range(1, TEMPLATES_PER_IDENTITY):
                gallery = first * TEMPLATES_PER_IDENTITY + 1
                probe = second * TEMPLATES_PER_IDENTITY + number + 1
                lines.append(f"{gallery} {probe} {int(first == second)}")
    order = numbered_generator(seed, PLACEMENT, FIRST_UNSEEN).permutation(len(lines))
    return [lines[i] for i in order]
