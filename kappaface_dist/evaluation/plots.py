"""Plots of verification results, as figures and files.

Shapes: P pairs, T thresholds.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kappaface_dist.evaluation.bootstrap import Intervals
from kappaface_dist.evaluation.protocol import Roc

# Ticks of the miss rate on a DET plot; the false accept rate goes by decades.
MISS_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def plot_roc(path: str | os.PathLike[str], curves: Mapping[str, Roc], title: str = "") -> None:
    """Draw roc_figure into a file, whose extension gives the format.

    Raises:
        ValueError: there is no curve.
    """
    if not curves:
        raise ValueError(
            f"there is no ROC to draw into {path}: no set has both same and different pairs"
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    roc_figure(curves, title).savefig(path)


def roc_figure(
    curves: Mapping[str, Roc], title: str = "", intervals: Mapping[str, Intervals] | None = None
) -> Figure:
    """True accept rate over false accept rate (logarithmic), one curve per name.

    The axis starts at the smallest false accept rate above zero of any curve; a curve starts at its
    own, below which its set has no different pair to measure with. Intervals are shaded.
    """
    figure, axes = _new_figure(title)
    smallest = 0.1
    for name, curve in curves.items():
        measured_T = curve.far_T > 0
        far_T = curve.far_T[measured_T]
        smallest = min(smallest, far_T[0])
        line = axes.plot(
            far_T, curve.tar_T[measured_T], drawstyle="steps-post", linewidth=1.6, label=name
        )
        if intervals and name in intervals:
            band = intervals[name]
            axes.fill_between(
                band.band_far_T,
                band.band_low_T,
                band.band_high_T,
                color=line[0].get_color(),
                alpha=0.18,
                linewidth=0,
            )
    chance_T = np.geomspace(smallest, 1, 100)
    axes.plot(chance_T, chance_T, color="0.6", linestyle="--", linewidth=1, label="chance")
    axes.set_xscale("log")
    axes.set_xlim(smallest, 1)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("false accept rate")
    axes.set_ylabel("true accept rate")
    axes.legend(loc="best", framealpha=0.9)
    return figure


def det_figure(
    curves: Mapping[str, Roc], title: str = "", intervals: Mapping[str, Intervals] | None = None
) -> Figure:
    """Miss rate over false accept rate, both logarithmic: small errors stay apart."""
    figure, axes = _new_figure(title)
    smallest, lowest = 0.1, 0.1
    for name, curve in curves.items():
        # What the set has no pair for, zero on either axis, has no place on a logarithm.
        shown_T = (curve.far_T > 0) & (curve.tar_T < 1)
        far_T, miss_T = curve.far_T[shown_T], 1 - curve.tar_T[shown_T]
        line = axes.plot(far_T, miss_T, drawstyle="steps-post", linewidth=1.6, label=name)
        if len(far_T):
            smallest, lowest = min(smallest, far_T[0]), min(lowest, miss_T[-1])
        if intervals and name in intervals:
            band = intervals[name]
            floor = miss_T.min() / 2 if len(miss_T) else 1e-6
            axes.fill_between(
                band.band_far_T,
                np.maximum(1 - band.band_high_T, floor),
                np.maximum(1 - band.band_low_T, floor),
                color=line[0].get_color(),
                alpha=0.18,
                linewidth=0,
            )
    axes.plot([smallest, 1], [smallest, 1], color="0.7", linestyle=":", label="equal errors")
    axes.set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(lowest * 0.8, 1.1))
    ticks = [tick for tick in MISS_TICKS if tick >= lowest * 0.8]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_xlabel("false accept rate")
    axes.set_ylabel("false reject rate")
    axes.legend(loc="best", framealpha=0.9)
    return figure


def histogram_figure(distance_P: np.ndarray, same_P: np.ndarray, title: str = "") -> Figure:
    """Cosine similarities of same and of different pairs, as densities."""
    figure, axes = _new_figure(title)
    cosine_P = 1 - distance_P / 2
    edges = np.linspace(cosine_P.min(), cosine_P.max() + 1e-9, 61)
    for mask_P, label, colour in (
        (~same_P, "different", "tab:red"),
        (same_P, "same", "tab:blue"),
    ):
        if mask_P.any():
            axes.hist(
                cosine_P[mask_P],
                bins=edges.tolist(),
                density=True,
                alpha=0.55,
                color=colour,
                label=f"{label} ({mask_P.sum()})",
            )
    axes.set_xlabel("cosine similarity")
    axes.set_ylabel("density")
    axes.legend(loc="best", framealpha=0.9)
    return figure


def _new_figure(title: str) -> tuple[Figure, Axes]:
    # Figure without pyplot: no global state, no window.
    figure = Figure(figsize=(6.4, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.grid(which="major", color="0.85")
    axes.grid(which="minor", axis="x", color="0.94")
    axes.set_axisbelow(True)
    axes.set_title(title)
    return figure, axes
