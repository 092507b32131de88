"""The pictures of a head's classes: margins by number of images, concentrations now and over time.

A run and a margin report draw the same ones.
Shapes: C classes.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kappaface_dist.head import ArcFace, KappaFace, Margin
from kappaface_dist.whole_files import whole_file

# More classes than this are thinned out evenly.
MAX_POINTS = 50_000


def draw_classes(
    folder: Path,
    count_C: np.ndarray,
    margin_C: np.ndarray,
    kappa_C: np.ndarray,
    *,
    margin: Margin,
    largest: int,
    step: int,
    history: Sequence[dict[str, float]],
) -> list[Path]:
    """Draw margins.png, and concentrations.png where one is known; returns what was drawn.

    Args:
        count_C, margin_C, kappa_C: of the classes, or of some: images, radians, and the
            concentration, NaN where none was measured.
        largest: images of the largest class of all.
        history: lines of metrics.jsonl with quantiles of the concentrations.
    """
    drawn = [folder / "margins.png"]
    _save(margins_figure(count_C, margin_C, kappa_C, margin, largest, step), drawn[0])
    if np.isfinite(kappa_C).any():
        drawn.append(folder / "concentrations.png")
        _save(concentrations_figure(kappa_C, history), drawn[1])
    return drawn


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png")


def margins_figure(
    count_C: np.ndarray,
    margin_C: np.ndarray,
    kappa_C: np.ndarray,
    margin: Margin,
    largest: int,
    step: int,
) -> Figure:
    """The margin of each class over its images, coloured by its concentration."""
    figure = Figure(figsize=(8, 5), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    chosen = np.flatnonzero(count_C > 0)
    chosen = chosen[:: -(-len(chosen) // MAX_POINTS) or 1]
    count, radians, kappa = (values[chosen] for values in (count_C, margin_C, kappa_C))
    known = np.isfinite(kappa)
    if known.any():
        low, high = np.percentile(kappa[known], [2, 98])
        points = axes.scatter(
            count[known],
            radians[known],
            c=kappa[known],
            vmin=low,
            vmax=high,
            s=14,
            cmap="viridis",
            linewidths=0,
        )
        figure.colorbar(points, ax=axes, label="concentration (low: hard)", extend="both")
    # A margin is an angle or a difference of cosines, as its name says.
    angle = isinstance(margin, KappaFace | ArcFace)
    unit = "radians" if angle else f"as {type(margin).__name__} has it"
    if not known.all():
        adaptive = isinstance(margin, KappaFace)
        reason = "too few images to measure: neutral" if adaptive else "one margin for all"
        axes.scatter(
            count[~known],
            radians[~known],
            s=22,
            facecolors="none",
            edgecolors="tab:red",
            label=f"{reason} ({(~known).sum()} classes)",
        )
    fewest = int(count.min(initial=largest))
    if isinstance(margin, KappaFace):
        size = np.geomspace(fewest, largest, 200)
        neutral = neutral_margin(margin, size, largest)
        axes.plot(size, neutral, color="0.3", linewidth=1.2, label="at mean concentration")
    axes.set(
        xlabel="images of the class",
        ylabel=f"margin, {unit}",
        title=f"Margin of each class, step {step}",
        xscale="log",
        ylim=(0, None),
    )
    ticks = [n * 10**power for power in range(8) for n in (1, 2, 5)]
    ticks = [tick for tick in ticks if fewest <= tick <= largest]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def neutral_margin(margin: KappaFace, count_C: np.ndarray, largest: int) -> np.ndarray:
    """What the number of images alone says: the margin of a class of mean concentration."""
    rarity_C = (1 + np.cos(math.pi * count_C / (margin.count_scale * largest))) / 2
    share = margin.concentration_share
    return margin.margin * (share / 2 + (1 - share) * rarity_C)


def concentrations_figure(kappa_C: np.ndarray, history: Sequence[dict[str, float]]) -> Figure:
    """Concentrations now, as a histogram, and after each refresh, as quantiles."""
    figure = Figure(figsize=(11, 4.5), layout="constrained", dpi=120)
    now, course = figure.subplots(1, 2)
    _histogram(now, kappa_C[np.isfinite(kappa_C)])
    _course(course, [line for line in history if "concentration_p50" in line])
    return figure


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
