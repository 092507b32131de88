"""The pictures of a margin report.

Shapes: C classes, H W image size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kappaface_dist.data.images import decode_image
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.margin_study.hard_or_dirty import ClassNoise, draw_noise
from kappaface_dist.margin_study.margin_report import NUM_SHOWN, ClassMeasures, easiest, hardest
from kappaface_dist.margin_study.reliability_picture import draw_reliability
from kappaface_dist.models.class_pictures import draw_classes
from kappaface_dist.text_files import shown

IMAGES_EACH = 6
TILE, FRAME = 80, 4


def draw_pictures(
    folder: Path,
    classes: ClassMeasures,
    reliability: Sequence[dict[str, Any]] = (),
    noise: ClassNoise | None = None,
) -> list[Path]:
    """Draw all pictures into folder; returns their paths.

    Args:
        reliability: of `reliability.reliability`.
        noise: of `hard_or_dirty.judge_classes`.

    Raises:
        ValueError: a sample image is unreadable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_classes(
        folder,
        classes.count_C,
        classes.margin_C,
        classes.kappa_C,
        margin=classes.margin,
        largest=int(classes.count_C.max()),
        step=classes.step,
        history=classes.history,
    )
    if np.isfinite(classes.kappa_C).any():
        drawn.append(folder / "identities.png")
        _identities(classes, noise).savefig(drawn[-1])
    if noise is not None:
        drawn.append(folder / "hard_or_dirty.png")
        draw_noise(noise).savefig(drawn[-1])
    if reliability:
        drawn.append(folder / "reliability.png")
        figure = Figure(figsize=(11, 4.5), layout="constrained", dpi=120)
        draw_reliability(figure, classes, reliability)
        figure.savefig(drawn[-1])
    return drawn


def _identities(classes: ClassMeasures, noise: ClassNoise | None) -> Figure:
    """Images of the hardest and of the easiest classes, side by side, a class in a row."""
    wrong = noise.wrong if noise is not None else frozenset()
    judged = {} if noise is None else {c: place for place, c in enumerate(noise.class_C.tolist())}
    figure = Figure(figsize=(12.5, 8), layout="constrained", dpi=120)
    num = min(NUM_SHOWN, int(np.isfinite(classes.kappa_C).sum()))
    for axes, title, chosen in zip(
        figure.subplots(1, 2),
        ("Hardest: lowest concentration", "Easiest: highest concentration"),
        (hardest(classes, num), easiest(classes, num)),
        strict=True,
    ):
        axes.imshow(np.concatenate([_row(classes.catalog, number, wrong) for number in chosen]))
        names = classes.catalog.class_names
        labels = [
            f"{_label(names, number)}\n{classes.count_C[number]} images\n"
            f"κ {classes.kappa_C[number]:.1f}, m {classes.margin_C[number]:.2f}"
            for number in chosen
        ]
        for place, number in enumerate(chosen):
            if noise is not None and number in judged and noise.wrong_C[judged[number]]:
                c = judged[number]
                labels[place] += f"\n{noise.wrong_C[c]} wrong of {noise.photos_C[c]}: "
                labels[place] += noise.kind(c)
        axes.set_yticks([TILE * (row + 0.5) for row in range(len(chosen))], labels, fontsize=8)
        axes.set_xticks([])
        axes.set_title(title)
    return figure


def _label(names: Sequence[str] | None, number: int) -> str:
    """Who a class is; a long name loses its middle, since the pictures need the width."""
    if names is None:
        return f"class {number}"
    name = shown(names[number])
    name = name if len(name) <= 24 else f"{name[:14]}…{name[-9:]}"
    return name.replace("$", r"\$")  # to matplotlib it would begin a formula


def _row(catalog: Catalog, number: int, wrong: frozenset[int]) -> np.ndarray:
    """Images of a class side by side, the wrong ones first and framed; white where it has fewer."""
    row = np.full((TILE, TILE * IMAGES_EACH, 3), 255, dtype=np.uint8)
    index_I = np.flatnonzero(catalog.label_I == number)
    is_wrong_I = np.isin(index_I, list(wrong))
    index_I = index_I[np.argsort(~is_wrong_I, kind="stable")]
    for place, index in enumerate(index_I[:IMAGES_EACH].tolist()):
        try:
            pixels_HW3 = decode_image(catalog.read(index), TILE)
        except ValueError as error:
            raise ValueError(f"{catalog.where(index)}: {error}") from error
        if index in wrong:
            framed = np.full_like(pixels_HW3, (214, 39, 40))
            framed[FRAME:-FRAME, FRAME:-FRAME] = pixels_HW3[FRAME:-FRAME, FRAME:-FRAME]
            pixels_HW3 = framed
        row[:, TILE * place : TILE * (place + 1)] = pixels_HW3
    return row
