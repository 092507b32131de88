"""Plots of verification results, as files."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from kappaface_dist.evaluation.protocol import Roc


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


def roc_figure(curves: Mapping[str, Roc], title: str = "") -> Figure:
    """True accept rate over false accept rate (logarithmic), one curve per name.

    The axis starts at the smallest false accept rate above zero of any curve; a curve starts at its
    own, below which its set has no different pair to measure with.
    """
    # Figure without pyplot: no global state, no window.
    figure = Figure(figsize=(6.4, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    smallest = 0.1
    for name, curve in curves.items():
        measured_T = curve.far_T > 0
        far_T = curve.far_T[measured_T]
        smallest = min(smallest, far_T[0])
        axes.plot(far_T, curve.tar_T[measured_T], drawstyle="steps-post", linewidth=1.6, label=name)
    chance_T = np.geomspace(smallest, 1, 100)
    axes.plot(chance_T, chance_T, color="0.6", linestyle="--", linewidth=1, label="chance")
    axes.set_xscale("log")
    axes.set_xlim(smallest, 1)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("false accept rate")
    axes.set_ylabel("true accept rate")
    axes.grid(which="major", color="0.85")
    axes.grid(which="minor", axis="x", color="0.94")
    axes.set_axisbelow(True)
    axes.set_title(title)
    axes.legend(loc="best", framealpha=0.9)
    return figure
