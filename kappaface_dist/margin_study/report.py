"""The comparison as text and as a picture."""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kappaface_dist.evaluation.reports.plots import CURVES
from kappaface_dist.margin_study.intervals import MEASURES, mean_interval, plus_minus

PAIRS = (("all", "all pairs"), ("small", "pairs like small classes"))
HEADS = "".join(f"{key:^16}" for key in ("accuracy", "of small", "AUC"))
COLOURS = {"all": "tab:blue", "small": "tab:orange"}


def comparison_table(report: dict[str, Any]) -> str:
    """Accuracies and paired differences of all arms, in per cent."""
    data = report["data"]
    reference = report["reference"]
    nearby = data["images_nearby"]
    lines = [
        f"{data['classes']} classes with {data['images_per_class'][0]} to"
        f" {data['images_per_class'][1]} images, {data['images']} in all; {data['pairs']} pairs of"
        f" unseen people, {data['small_pairs']} of them like small classes (the training classes"
        f" near them have {nearby['small']:.1f} images, near all pairs {nearby['all']:.1f});"
        f" {report['seeds']} seed(s)",
        "",
        f"{'':<18}{'%':^48}{f'difference to {reference}, points':^48}{'mean':>8}",
        f"{'arm':<18}{HEADS}{HEADS}{'margin':>8}{'loss':>9}",
    ]
    for name, detail in report["details"].items():
        cells = [_cell(detail[key], "") for key in MEASURES]
        if name in report["paired"]:
            cells += _differences(report["paired"][name])
        else:
            cells += [f"{'–':^16}"] * len(MEASURES)
        means = f"{detail['mean_margin']['classes']:>8.3f}{detail['loss']:>9.4f}"
        lines.append(f"{name:<18}{''.join(cells)}{means}")
    if report["paired_to_kappaface"]:
        lines += ["", f"{'from kappaface':<18}{HEADS}"]
    for name, paired in report["paired_to_kappaface"].items():
        lines.append(f"{name:<18}{''.join(_differences(paired))}")
    lines += ["", *_planted(report.get("planted", {})), *_detectable(report["paired"])]
    return "\n".join([*lines, report["verdict"]])


def _differences(paired: dict[str, Any]) -> list[str]:
    return [_cell(paired if key == "all" else paired[key], "+") for key in MEASURES]


def _planted(planted: dict[str, Any]) -> list[str]:
    """What the report on the labels by each seed's KappaFace found of what was planted."""
    lines = []
    for kind in [key for key, found in planted.items() if isinstance(found, dict)]:
        found = planted[kind]
        right, listed, there = (np.array(found[key]) for key in ("right", "found", "planted"))
        shares = []
        for name, whole in (("precision", listed), ("recall", there)):
            by_seed = right[whole > 0] / whole[whole > 0]
            if len(by_seed):
                low, high = 100 * by_seed.min(), 100 * by_seed.max()
                pooled = 100 * right.sum() / whole.sum()
                shares.append(f"{name} {pooled:.1f} % ({low:.1f} to {high:.1f} by seed)")
        what = f"{there.sum()} planted, {listed.sum()} found, {right.sum()} of them rightly"
        lines.append(": ".join([f"{kind.replace('_', ' ')}, all seeds", what, *shares]))
    return [*lines, ""] if lines else []


def _detectable(paired: dict[str, dict[str, Any]]) -> list[str]:
    """What differences the experiment could have seen."""
    entries = {
        key: [(result if key == "all" else result[key])["detectable"] for result in paired.values()]
        for key in MEASURES
    }
    if not paired or None in entries["all"]:
        return []
    cells = [f"{100 * max(entries[key]):.2f} ({key})" for key in MEASURES]
    return [
        f"smallest difference that would be seen of every arm, 4 times of 5 and corrected for"
        f" {len(paired)} arm(s), points: {', '.join(cells)}"
    ]


def _cell(entry: dict[str, Any], sign: str) -> str:
    text = f"{100 * entry['mean']:{sign}.2f}{plus_minus(entry['interval'])}"
    return f"{text:^16}"


def draw_comparison(path: Path, report: dict[str, Any]) -> None:
    """Accuracies by seed, and differences to the fixed margin with their intervals."""
    names = list(report["details"])
    figure = Figure(figsize=(11, 1.6 + 0.55 * len(names)), layout="constrained", dpi=120)
    accuracy, difference = figure.subplots(1, 2, sharey=True)
    for row, name in enumerate(names):
        for offset, (pairs, _) in zip((-0.14, 0.14), PAIRS, strict=True):
            values = [100 * value for value in report["arms"][name][pairs]]
            colour = COLOURS[pairs]
            accuracy.plot(values, [row + offset] * len(values), ".", color=colour, alpha=0.35)
            _bar(accuracy, report["details"][name][pairs], row + offset, colour)
            if name in report["paired"]:
                paired = report["paired"][name]
                entry = paired if pairs == "all" else paired["small"]
                _bar(difference, entry, row + offset, colour)
    difference.axvline(0, color="0.4", linewidth=1)
    accuracy.set_yticks(range(len(names)), names)
    accuracy.invert_yaxis()
    seeds = report["seeds"]
    accuracy.set(
        xlabel="verification accuracy, %", title=f"Each seed, and the mean of {seeds} with 95 %"
    )
    difference.set(
        xlabel=f"percentage points, by seed from {report['reference']}",
        title=f"Paired difference to {report['reference']}, 95 %",
    )
    for axes in (accuracy, difference):
        axes.grid(axis="x", color="0.88")
        axes.set_axisbelow(True)
    for pairs, label in PAIRS:
        difference.plot([], [], "o-", color=COLOURS[pairs], label=label)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_losses(path: Path, report: dict[str, Any]) -> None:
    """Training loss by epoch of each arm, and its difference to the reference's by seed.

    Over the epochs that all seeds have: where images are left out, the same steps are more epochs.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained", dpi=120)
    loss, difference = figure.subplots(1, 2)
    reference = report["reference"]
    details = report["details"]
    base_SE = _shared_epochs(details[reference]["loss_by_epoch"])
    for curve, (name, detail) in zip(cycle(CURVES), details.items(), strict=False):
        loss_SE = _shared_epochs(detail["loss_by_epoch"])
        if len(loss_SE) == 0:
            continue
        epoch_E = np.arange(1, loss_SE.shape[1] + 1)
        loss.plot(epoch_E, loss_SE.mean(axis=0), label=name, **curve)
        if name != reference and len(base_SE) == len(loss_SE):
            shared = min(base_SE.shape[1], loss_SE.shape[1])
            gap_SE, epoch_E = loss_SE[:, :shared] - base_SE[:, :shared], epoch_E[:shared]
            difference.plot(epoch_E, gap_SE.mean(axis=0), **curve)
            intervals = [mean_interval(gap_S)["interval"] for gap_S in gap_SE.T]
            if None not in intervals:
                low_E, high_E = np.transpose(intervals)
                difference.fill_between(
                    epoch_E, low_E, high_E, color=curve["color"], alpha=0.2, linewidth=0
                )
    difference.axhline(0, color="0.4", linewidth=1)
    loss.set(xlabel="epoch", ylabel="training loss", title="Mean over seeds")
    difference.set(xlabel="epoch", title=f"Less that of {reference}, mean and 95 % by seed")
    for axes in (loss, difference):
        axes.grid(color="0.88")
        axes.set_axisbelow(True)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path)


def _shared_epochs(losses: list[list[float]]) -> np.ndarray:
    """[S, E] of the losses by seed."""
    shared = min(map(len, losses), default=0)
    return np.array([loss[:shared] for loss in losses])


def _bar(axes: Axes, entry: dict[str, Any], height: float, colour: str) -> None:
    axes.plot(100 * entry["mean"], height, "o", color=colour, markersize=5)
    if entry["interval"] is not None:
        axes.plot([100 * end for end in entry["interval"]], [height] * 2, "-", color=colour)
