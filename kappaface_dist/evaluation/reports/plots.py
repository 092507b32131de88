"""Plots of results, as figures and files.

Shapes: T thresholds, K ranks, X scores of one kind.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure

from kappaface_dist.evaluation.protocol import Roc, area_under, equal_error_rate
from kappaface_dist.evaluation.reports.names import in_picture
from kappaface_dist.evaluation.resampling import Band
from kappaface_dist.whole_files import whole_file

# Ticks of the miss rate on a DET plot; the false accept rate goes by decades.
MISS_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

RANK_TICKS = (1, 2, 5, 10, 20, 50, 100)
MAX_POINTS = 2000
MOST_IN_TITLE = 60
# One for each false accept rate that a threshold may be for, and for ten curves each.
LINE_STYLES = ("-", "--", "-.", ":", (0, (1, 3)), (0, (6, 3, 1, 3, 1, 3)))
MAX_MARKERS = 30
# Sixty curves before two are drawn alike.
CURVES = [
    {"linestyle": style, "color": colour} for style in LINE_STYLES for colour in TABLEAU_COLORS
]


def plot_roc(path: str | os.PathLike[str], curves: Mapping[str, Roc], title: str = "") -> None:
    """Draw roc_figure into a file, whose extension gives the format.

    Raises:
        ValueError: there is no curve.
    """
    if not curves:
        raise ValueError(
            f"there is no ROC to draw into {path}: no set has both same and different pairs"
        )
    figure = roc_figure(curves, title)
    with whole_file(Path(path)) as unfinished:
        figure.savefig(unfinished, format=Path(path).suffix[1:] or "png")


def roc_figure(
    curves: Mapping[str, Roc], title: str = "", bands: Mapping[str, Band] | None = None
) -> Figure:
    """True accept rate over false accept rate (logarithmic), one curve per name.

    The axis starts at the smallest false accept rate above zero of any curve; a curve starts at its
    own, below which its set has no different pair to measure with. Intervals are shaded.
    """
    figure, axes = new_figure(title)
    smallest = 0.1
    for name, curve in curves.items():
        far_T, tar_T = _shown(curve, curve.far_T > 0)
        smallest = min(smallest, far_T[0])
        label = f"{in_picture(name)}: {_curve_note(curve)}"
        line = axes.plot(far_T, tar_T, drawstyle="steps-post", linewidth=1.6, label=label)
        if bands and name in bands:
            band = bands[name]
            _shade(axes, band.far_T, band.low_T, band.high_T, line[0].get_color())
    chance_T = np.geomspace(smallest, 1, 100)
    axes.plot(chance_T, chance_T, color="0.6", linestyle="--", linewidth=1, label="chance")
    axes.set_xscale("log")
    axes.set_xlim(smallest, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("false accept rate")
    axes.set_ylabel("true accept rate")
    axes.legend(loc="best", framealpha=0.9)
    return figure


def det_figure(
    curves: Mapping[str, Roc],
    title: str = "",
    bands: Mapping[str, Band] | None = None,
    *,
    labels: tuple[str, str] = ("false accept rate", "false reject rate"),
) -> Figure:
    """Miss rate over false accept rate, both logarithmic: small errors stay apart."""
    figure, axes = new_figure(title)
    smallest, lowest = 0.1, 0.1
    for name, curve in curves.items():
        # What the set has no pair for, zero on either axis, has no place on a logarithm; where
        # everything is accepted there is no trade-off.
        inside_T = (curve.far_T > 0) & (curve.far_T < 1) & (curve.tar_T < 1)
        far_T, tar_T = _shown(curve, inside_T)
        miss_T = 1 - tar_T
        note = "" if len(far_T) else ": no error to show"
        line = axes.plot(
            far_T, miss_T, drawstyle="steps-post", linewidth=1.6, label=in_picture(name) + note
        )
        if len(far_T):
            smallest, lowest = min(smallest, far_T[0]), min(lowest, miss_T[-1])
        if bands and name in bands:
            band = bands[name]
            floor = miss_T.min() / 2 if len(miss_T) else 1e-6
            low_T, high_T = (np.maximum(1 - tar, floor) for tar in (band.high_T, band.low_T))
            _shade(axes, band.far_T[:-1], low_T[:-1], high_T[:-1], line[0].get_color())
    axes.plot([smallest, 1], [smallest, 1], color="0.7", linestyle=":", label="equal errors")
    axes.set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(lowest * 0.8, 1))
    ticks = [tick for tick in MISS_TICKS if tick >= lowest * 0.8]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(loc="best", framealpha=0.9)
    return figure


def cmc_figure(
    shares: Mapping[str, np.ndarray],
    title: str = "",
    bands: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> Figure:
    """Cumulative match characteristic: the share of searches whose mate is among the first k.

    Args:
        shares: by name, the shares for k = 1, 2, ...
        bands: intervals (low, high) of those.
    """
    figure, axes = new_figure(title)
    deepest = max(len(share_K) for share_K in shares.values())
    for name, share_K in shares.items():
        rank_K = np.arange(1, len(share_K) + 1)
        marker = "." if deepest <= MAX_MARKERS else ""
        line = axes.plot(rank_K, share_K, marker=marker, linewidth=1.4, label=in_picture(name))
        if bands and name in bands:
            _shade(axes, rank_K, *bands[name], line[0].get_color())
    ticks = [tick for tick in RANK_TICKS if tick <= deepest]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(0.95, deepest * 1.05)
    lowest = min(float(share_K[0]) for share_K in shares.values())
    for low_K, _ in (bands or {}).values():
        lowest = min(lowest, float(low_K[0]))
    axes.set_ylim(max(0, lowest - 0.05 - 0.1 * (1 - lowest)), 1)
    axes.set_xlabel("rank k")
    axes.set_ylabel("share of searches with the mate among the first k")
    axes.legend(loc="best", framealpha=0.9)
    return figure


def histogram_figure(
    scores: Mapping[str, np.ndarray],
    title: str = "",
    thresholds: Mapping[str, float] | None = None,
) -> Figure:
    """Cosine similarities of two kinds, as densities: first of different people, then of one.

    Args:
        thresholds: cosines by name, drawn as lines.
    """
    figure, axes = new_figure(title)
    known = {label: score_X for label, score_X in scores.items() if len(score_X)}
    lowest = min(float(score_X.min()) for score_X in known.values())
    highest = max(float(score_X.max()) for score_X in known.values())
    fewest = min(len(score_X) for score_X in known.values())
    num_bins = int(np.clip(2 * np.sqrt(fewest), 12, 60))
    edges = np.linspace(lowest, highest + 1e-6, num_bins + 1)
    for (label, score_X), colour in zip(scores.items(), ("tab:red", "tab:blue"), strict=True):
        if len(score_X):
            density, _ = np.histogram(score_X, edges, density=True)
            axes.stairs(
                density,
                edges,
                fill=True,
                alpha=0.55,
                color=colour,
                label=f"{label} ({len(score_X)})",
            )
    for (label, cosine), style in zip((thresholds or {}).items(), LINE_STYLES, strict=False):
        axes.axvline(
            cosine, color="0.25", linestyle=style, linewidth=1.2, label=f"{label}: {cosine:.3f}"
        )
    axes.set_xlabel("cosine similarity")
    axes.set_ylabel("density")
    axes.legend(loc="best", framealpha=0.9)
    return figure


def _curve_note(curve: Roc) -> str:
    pairs = f"n {curve.num_pairs}, " if curve.num_pairs else ""
    return f"{pairs}AUC {area_under(curve):.4f}, EER {equal_error_rate(curve):.2%}"


def _shown(curve: Roc, mask_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rates of the chosen thresholds; of millions only as many as a picture can tell apart."""
    far_T, tar_T = curve.far_T[mask_T], curve.tar_T[mask_T]
    if len(far_T) <= MAX_POINTS:
        return far_T, tar_T
    wanted = np.geomspace(far_T[0], far_T[-1], MAX_POINTS)
    # The last threshold of a rate: the curve is a staircase, and that is the top of its step.
    kept = np.unique(np.searchsorted(far_T, wanted * (1 + 1e-9), side="right") - 1)
    return far_T[kept], tar_T[kept]


def _shade(axes: Axes, x_T: np.ndarray, low_T: np.ndarray, high_T: np.ndarray, colour: Any) -> None:
    axes.fill_between(x_T, low_T, high_T, color=colour, alpha=0.18, linewidth=0)


def tell_apart(axes: Axes, first: int = 0) -> None:
    """Draw lines by CURVES, from so many on: more than ten would have each other's colours."""
    curves = CURVES[first:]
    axes.set_prop_cycle(**{key: [curve[key] for curve in curves] for key in curves[0]})


def new_figure(title: str) -> tuple[Figure, Axes]:
    """A figure with one grid, as all plots of a report have it."""
    # Figure without pyplot: no global state, no window.
    figure = Figure(figsize=(6.4, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    tell_apart(axes)
    axes.grid(which="major", color="0.85")
    axes.grid(which="minor", axis="x", color="0.94")
    axes.set_axisbelow(True)
    axes.set_title(in_picture(title, MOST_IN_TITLE))
    return figure, axes
