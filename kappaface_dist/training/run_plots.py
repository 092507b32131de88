"""The pictures of a finished run: loss and accuracy, margins, concentrations, ROC."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kappaface_dist.evaluation.one_to_one.pairs import PairResult
from kappaface_dist.evaluation.reports.names import in_picture
from kappaface_dist.evaluation.reports.plots import plot_roc, tell_apart
from kappaface_dist.models.class_pictures import draw_classes
from kappaface_dist.training.head_log import ClassTable, by_dataset
from kappaface_dist.training.metrics_file import read_metrics
from kappaface_dist.whole_files import whole_file

matplotlib.use("Agg")


def draw_plots(
    folder: Path,
    classes: dict[str, ClassTable],
    results: dict[str, PairResult],
    *,
    step: int,
) -> None:
    """plots/*.png of a run; of each of several datasets its classes in plots/NAME."""
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    lines = read_metrics(folder / "metrics.jsonl")
    _draw(plots / "loss.png", lambda axes: _loss(axes, lines))
    for name, table in classes.items():
        (plots / name).mkdir(exist_ok=True)
        draw_classes(
            plots / name,
            table.images_C,
            table.margin_C,
            table.kappa_C,
            margin=table.margin,
            largest=table.largest,
            step=step,
            history=[line | by_dataset(line).get(name, {}) for line in lines],
        )
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
    tell_apart(right, 1)  # the first is the loss's
    for key in names:
        found = [line for line in lines if key in line]
        # Lines of an evaluation say their step only.
        at = np.interp([line["step"] for line in found], steps, epochs)
        label = in_picture(key.removeprefix("accuracy/"))
        right.plot(at, [line[key] for line in found], marker="o", markersize=4, label=label)
    right.set(ylabel="accuracy", ylim=(min(0.5, right.get_ylim()[0]), 1))
    right.legend(loc="center right")
