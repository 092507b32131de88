"""The pictures of a margin report.

Shapes: C classes, H W image size.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kappaface_dist.data.images import decode_image
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.margin_study.margin_report import ClassMeasures, easiest, hardest
from kappaface_dist.margin_study.reliability_picture import draw_reliability
from kappaface_dist.text_files import shown

# More classes than this are thinned out evenly.
MAX_POINTS = 50_000
NUM_IDENTITIES = 8
IMAGES_EACH = 6
TILE = 80


def draw_pictures(
    folder: Path, classes: ClassMeasures, reliability: Sequence[dict[str, Any]] = ()
) -> list[Path]:
    """Draw all pictures into folder; returns their paths.

    Args:
        reliability: of `reliability.reliability`.

    Raises:
        ValueError: a sample image is unreadable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [folder / "margins.png"]
    figure = Figure(figsize=(8, 5), layout="constrained", dpi=120)
    _margins(figure, figure.add_subplot(), classes)
    figure.savefig(drawn[0])
    if np.isfinite(classes.kappa_C).any():
        drawn += [folder / "concentrations.png", folder / "identities.png"]
        figure = Figure(figsize=(11, 4.5), layout="constrained", dpi=120)
        now, course = figure.subplots(1, 2)
        _histogram(now, classes.kappa_C[np.isfinite(classes.kappa_C)])
        _course(course, classes.history)
        figure.savefig(drawn[1])
        _identities(classes).savefig(drawn[2])
    if reliability:
        drawn.append(folder / "reliability.png")
        figure = Figure(figsize=(11, 4.5), layout="constrained", dpi=120)
        draw_reliability(figure, classes, reliability)
        figure.savefig(drawn[-1])
    return drawn


def _margins(figure: Figure, axes: Axes, classes: ClassMeasures) -> None:
    shown = np.flatnonzero(classes.count_C > 0)
    shown = shown[:: -(-len(shown) // MAX_POINTS)]
    count, margin, kappa = (
        values[shown] for values in (classes.count_C, classes.margin_C, classes.kappa_C)
    )
    known = np.isfinite(kappa)
    if known.any():
        low, high = np.percentile(kappa[known], [2, 98])
        points = axes.scatter(
            count[known],
            margin[known],
            c=kappa[known],
            vmin=low,
            vmax=high,
            s=14,
            cmap="viridis",
            linewidths=0,
        )
        figure.colorbar(points, ax=axes, label="concentration (low: hard)", extend="both")
    if not known.all():
        axes.scatter(
            count[~known],
            margin[~known],
            s=22,
            facecolors="none",
            edgecolors="tab:red",
            label=f"too few images to measure: neutral ({(~known).sum()})",
        )
    # What the number of images alone says: a class of mean concentration.
    settings = classes.margin
    largest = classes.count_C.max()
    size = np.geomspace(count.min(), largest, 200)
    rarity = (1 + np.cos(math.pi * size / (settings.count_scale * largest))) / 2
    share = settings.concentration_share
    neutral = settings.margin * (share / 2 + (1 - share) * rarity)
    axes.plot(size, neutral, color="0.3", linewidth=1.2, label="at mean concentration")
    axes.set(
        xlabel="images of the class",
        ylabel="margin, radians",
        title=f"Margin of each class, step {classes.step}",
        xscale="log",
        ylim=(0, None),
    )
    ticks = [n * 10**power for power in range(8) for n in (1, 2, 5)]
    ticks = [tick for tick in ticks if count.min() <= tick <= largest]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")


def _histogram(axes: Axes, kappa: np.ndarray) -> None:
    # A few classes of nearly equal images would leave everyone else in one bar.
    high = np.percentile(kappa, 99)
    inside = kappa[kappa <= high]
    axes.hist(inside, bins=min(50, max(8, len(kappa) // 10)), color="tab:blue", alpha=0.8)
    axes.axvline(float(np.median(kappa)), color="tab:red", label=f"median {np.median(kappa):.1f}")
    axes.set(
        xlabel="concentration (low: hard)",
        ylabel="classes",
        title=f"Now: {len(kappa)} measured classes, the highest 1 % left out",
    )
    axes.legend()


def _course(axes: Axes, history: list[dict[str, float]]) -> None:
    axes.set(xlabel="epoch", ylabel="concentration", title="After each refresh")
    if not history:
        axes.text(0.5, 0.5, "metrics.jsonl has none", ha="center", transform=axes.transAxes)
        return
    names = ("p05", "p25", "p50", "p75", "p95")
    # Every log line repeats what the last refresh measured; the line after a refresh has news.
    news: dict[tuple[float, ...], dict[str, float]] = {}
    for line in history:
        news.setdefault(tuple(line[f"concentration_{name}"] for name in names), line)
    epoch = [line["epoch"] for line in news.values()]
    quantile = {name: [line[f"concentration_{name}"] for line in news.values()] for name in names}
    for low, high, alpha, label in (
        ("p05", "p95", 0.15, "9 of 10 classes"),
        ("p25", "p75", 0.3, "half of the classes"),
    ):
        axes.fill_between(
            epoch,
            quantile[low],
            quantile[high],
            color="tab:blue",
            alpha=alpha,
            linewidth=0,
            label=label,
        )
    axes.plot(epoch, quantile["p50"], "o-", color="tab:blue", markersize=4, label="median")
    axes.set_ylim(0, None)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")


def _identities(classes: ClassMeasures) -> Figure:
    """Images of the hardest and of the easiest classes, side by side, a class in a row."""
    figure = Figure(figsize=(12.5, 8), layout="constrained", dpi=120)
    num = min(NUM_IDENTITIES, int(np.isfinite(classes.kappa_C).sum()))
    for axes, title, chosen in zip(
        figure.subplots(1, 2),
        ("Hardest: lowest concentration", "Easiest: highest concentration"),
        (hardest(classes, num), easiest(classes, num)),
        strict=True,
    ):
        axes.imshow(np.concatenate([_row(classes.catalog, number) for number in chosen]))
        names = classes.catalog.class_names
        labels = [
            f"{_label(names, number)}\n{classes.count_C[number]} images\n"
            f"κ {classes.kappa_C[number]:.1f}, m {classes.margin_C[number]:.2f}"
            for number in chosen
        ]
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


def _row(catalog: Catalog, number: int) -> np.ndarray:
    """The first images of a class side by side; white where it has fewer."""
    row = np.full((TILE, TILE * IMAGES_EACH, 3), 255, dtype=np.uint8)
    for place, index in enumerate(np.flatnonzero(catalog.label_I == number)[:IMAGES_EACH]):
        try:
            pixels_HW3 = decode_image(catalog.read(int(index)), TILE)
        except ValueError as error:
            raise ValueError(f"{catalog.where(int(index))}: {error}") from error
        row[:, TILE * place : TILE * (place + 1)] = pixels_HW3
    return row
