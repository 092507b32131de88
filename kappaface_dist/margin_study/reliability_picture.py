"""The picture of the reliability, and of how far a concentration may be off."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kappaface_dist.margin_study.margin_report import ClassMeasures
from kappaface_dist.margin_study.reliability import error_of_sizes


def draw_reliability(
    figure: Figure, classes: ClassMeasures, rows: Sequence[dict[str, Any]]
) -> None:
    """Left, how two sets of photos of one class agree; right, every κ with the error of its size.

    Args:
        rows: of `reliability.reliability`, at least one.
    """
    agreement, errors = figure.subplots(1, 2)
    sizes = [row["images"] for row in rows]
    agreement.plot(sizes, [row["pearson"] for row in rows], "o-", label="concentrations")
    agreement.plot(sizes, [row["spearman"] for row in rows], "s--", label="their ranks")
    for row in rows:
        agreement.annotate(
            f"{row['classes']} classes",
            (row["images"], 0.0),
            textcoords="offset points",
            xytext=(0, 4),
            ha="center",
            fontsize=7,
        )
    agreement.set(
        xlabel="photos of a set",
        ylabel="correlation over classes",
        title="Two sets of photos of one class",
        xscale="log",
        xlim=(sizes[0] / 1.15, sizes[-1] * 1.15),
        ylim=(min(0.0, *(row["spearman"] for row in rows)) - 0.02, 1.02),
    )
    _whole_numbers(agreement, sizes)
    agreement.grid(alpha=0.3)
    agreement.legend(loc="best")
    _errors(errors, classes, rows)


def _errors(axes: Axes, classes: ClassMeasures, rows: Sequence[dict[str, Any]]) -> None:
    known = np.isfinite(classes.kappa_C)
    if not known.any():
        axes.set(xlabel="photos of the class", ylabel="concentration")
        text = "no class was measured by this step"
        axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes)
        return
    count, kappa = classes.count_C[known], classes.kappa_C[known]
    high = float(np.percentile(kappa, 99))
    axes.scatter(count, kappa.clip(max=high), s=8, color="tab:blue", alpha=0.35, linewidths=0)
    middle = float(np.median(kappa))
    size = np.geomspace(count.min(), count.max(), 200)
    band = 1.96 * error_of_sizes(list(rows), size)
    axes.fill_between(
        size,
        (middle - band).clip(min=0.0),
        middle + band,
        color="tab:orange",
        alpha=0.25,
        linewidth=0,
        label="19 of 20, if all classes were alike",
    )
    axes.axhline(middle, color="tab:orange", linewidth=1)
    axes.set(
        xlabel="photos of the class",
        ylabel="concentration",
        title="Each class, and the error of its number of photos",
        xscale="log",
        ylim=(0, 1.05 * high),
    )
    ticks = [n * 10**power for power in range(8) for n in (1, 2, 5)]
    _whole_numbers(axes, [tick for tick in ticks if count.min() <= tick <= count.max()])
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")


def _whole_numbers(axes: Axes, ticks: Sequence[int]) -> None:
    axes.set_xticks(list(ticks), [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
