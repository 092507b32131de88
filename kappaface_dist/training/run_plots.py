"""The pictures of a finished run: loss and accuracy, margins, concentrations, ROC.

Shapes: C classes.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kappaface_dist.evaluation.one_to_one.pairs import PairResult
from kappaface_dist.evaluation.reports.names import in_picture
from kappaface_dist.evaluation.reports.plots import plot_roc
from kappaface_dist.training.metrics_file import read_metrics
from kappaface_dist.whole_files import whole_file

matplotlib.use("Agg")


def draw_plots(
    folder: Path, classes: dict[str, np.ndarray], results: dict[str, PairResult]
) -> None:
    """plots/*.png of a run."""
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    lines = read_metrics(folder / "metrics.jsonl")
    _draw(plots / "loss.png", lambda axes: _loss(axes, lines))
    _draw(plots / "margins.png", lambda axes: _margins(axes, classes))
    if np.isfinite(classes["concentration"]).any():
        _draw(plots / "concentrations.png", lambda axes: _concentrations(axes, classes))
    curves = {name: result.roc for name, result in results.items() if result.roc is not None}
    if curves:
        plot_roc(plots / "roc.png", curves, "Verification")


def _draw(path: Path, draw: Any) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=120)
    draw(figure.add_subplot())
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png")


def _loss(axes: Axes, lines: list[dict[str, float]]) -> None:
    logged = [line for line in lines if "loss" in line]
    steps, epochs = ([line[key] for line in logged] for key in ("step", "epoch"))
    axes.plot(epochs, [line["loss"] for line in logged], color="tab:blue")
    axes.set(xlabel="epoch", ylabel="loss", title="Training loss and verification")
    axes.grid(alpha=0.3)
    names = sorted({key for line in lines for key in line if key.startswith("accuracy/")})
    if not names or not logged:
        return
    right = axes.twinx()
    for number, key in enumerate(names):
        found = [line for line in lines if key in line]
        # Lines of an evaluation say their step only.
        at = np.interp([line["step"] for line in found], steps, epochs)
        label = in_picture(key.removeprefix("accuracy/"))
        colour = f"C{1 + number % 9}"
        right.plot(at, [line[key] for line in found], "o-", color=colour, markersize=4, label=label)
    right.set(ylabel="accuracy", ylim=(min(0.5, right.get_ylim()[0]), 1))
    right.legend(loc="center right")


def _margins(axes: Axes, classes: dict[str, np.ndarray]) -> None:
    measured_C = np.isfinite(classes["concentration"])
    for mask_C, label, colour in (
        (measured_C, "concentration measured", "tab:blue"),
        (~measured_C, "not measured: neutral", "tab:orange"),
    ):
        if mask_C.any():
            axes.scatter(
                classes["images"][mask_C],
                classes["margin"][mask_C],
                s=9,
                alpha=0.5,
                label=f"{label} ({mask_C.sum()} classes)",
                color=colour,
                linewidths=0,
            )
    axes.set(
        xlabel="images of the class",
        ylabel="margin, radians",
        title="Margin of each class",
        xscale="log",
        ylim=(0.0, None),
    )
    largest = int(classes["images"].max(initial=1))
    ticks = [n * 10**power for power in range(8) for n in (1, 2, 5) if n * 10**power <= largest]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.legend()
    axes.grid(alpha=0.3)


def _concentrations(axes: Axes, classes: dict[str, np.ndarray]) -> None:
    kappa_C = classes["concentration"][np.isfinite(classes["concentration"])]
    axes.hist(kappa_C, bins=min(50, max(5, len(kappa_C) // 5)))
    axes.axvline(kappa_C.mean(), color="tab:red", label=f"mean {kappa_C.mean():.0f}")
    axes.set(
        xlabel="concentration (kappa)",
        ylabel="classes",
        title="Concentration of the classes: low means hard",
    )
    axes.legend()
