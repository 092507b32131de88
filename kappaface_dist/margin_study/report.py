"""The comparison as text and as a picture."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

PAIRS = (("all", "all pairs"), ("small", "pairs like small classes"))
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
        f"{'':<18}{'accuracy, %':^40}{f'difference to {reference}, points':^46}",
        f"{'arm':<18}{'all':^20}{'small':^20}{'all':^23}{'small':^23}{'mean margin':>12}",
    ]
    for name, detail in report["details"].items():
        cells = [_cell(detail[pairs], 20, "") for pairs, _ in PAIRS]
        if name in report["paired"]:
            paired = report["paired"][name]
            cells += [_cell(entry, 23, "+") for entry in (paired, paired["small"])]
        else:
            cells += [f"{'–':^23}"] * 2
        lines.append(f"{name:<18}{''.join(cells)}{detail['mean_margin']['classes']:>12.3f}")
    lines += ["", f"{'points from kappaface':<21}{'all':^23}{'small':^23}"]
    for name, paired in report["paired_to_kappaface"].items():
        cells = [_cell(entry, 23, "+") for entry in (paired, paired["small"])]
        lines.append(f"{name:<21}{''.join(cells)}")
    return "\n".join([*lines, "", report["verdict"]])


def _cell(entry: dict[str, Any], width: int, sign: str) -> str:
    text = f"{100 * entry['mean']:{sign}.2f}"
    if entry["interval"] is not None:
        half = (entry["interval"][1] - entry["interval"][0]) / 2
        text += f" ± {100 * half:.2f}"
    return f"{text:^{width}}"


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
        title="Paired difference to the fixed margin, 95 %",
    )
    for axes in (accuracy, difference):
        axes.grid(axis="x", color="0.88")
        axes.set_axisbelow(True)
    for pairs, label in PAIRS:
        difference.plot([], [], "o-", color=COLOURS[pairs], label=label)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _bar(axes: Axes, entry: dict[str, Any], height: float, colour: str) -> None:
    axes.plot(100 * entry["mean"], height, "o", color=colour, markersize=5)
    if entry["interval"] is not None:
        axes.plot([100 * end for end in entry["interval"]], [height] * 2, "-", color=colour)
