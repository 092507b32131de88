"""A run as one watches it: its latest numbers, and how they went, for a terminal and for a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kappaface_dist.evaluation.reports.page import PAGES
from kappaface_dist.training.metrics_file import read_metrics
from kappaface_dist.whole_files import write_whole

BLOCKS = "▁▂▃▄▅▆▇█"
COLUMNS = 48  # of a line in the terminal
POINTS = 300  # of a curve on the page
# Of metrics.jsonl: what is drawn, under which title, and how a number is written.
DRAWN = {
    "loss": ("loss", "{:.3f}"),
    "rank_1": ("rank-1 in training", "{:.1%}"),
    "margin_mean": ("margin, mean", "{:.3f}"),
    "margin_std": ("margin, spread", "{:.3f}"),
    "images_per_second": ("images per second", "{:,.0f}"),
    "data_wait_share": ("wait for data", "{:.1%}"),
    "memory_bytes": ("memory, largest of a process", "{:.3g} bytes"),
    "slowest_rank_behind": ("slowest rank, behind the others", "{:.0%}"),
    "learning_rate": ("learning rate", "{:.4g}"),
}


@dataclass(frozen=True)
class Curve:
    """One kind of number over the steps."""

    title: str
    step: list[float]
    value: list[float]
    form: str

    def written(self, value: float) -> str:
        if self.form.endswith("bytes"):
            return f"{value / 1e9:.2f} GB"
        return self.form.format(value)

    @property
    def last(self) -> str:
        return self.written(self.value[-1])

    @property
    def span(self) -> str:
        """From the lowest to the highest."""
        return f"{self.written(min(self.value))} to {self.written(max(self.value))}"

    @property
    def flat(self) -> bool:
        """Whether all values are written alike: a rounding is no rise."""
        return self.written(min(self.value)) == self.written(max(self.value))

    def points(self, width: int, height: int) -> str:
        """Of an SVG polyline in so many units; the highest value at the top.

        What is flat lies in the middle. So does a single value, of which there would be nothing to
        see.
        """
        steps, values = thinned(self.step, POINTS), thinned(self.value, POINTS)
        if len(steps) == 1 or self.flat:
            return f"0.0,{height / 2:.1f} {width:.1f},{height / 2:.1f}"
        across = (steps[-1] - steps[0]) or 1.0
        low = min(self.value)
        up = max(self.value) - low
        return " ".join(
            f"{(step - steps[0]) / across * width:.1f},{height - (value - low) / up * height:.1f}"
            for step, value in zip(steps, values, strict=True)
        )


@dataclass(frozen=True)
class View:
    """A run at this moment.

    Attributes:
        state: running, stopped or finished, and how far.
        curves: in the order in which they are shown.
    """

    name: str
    state: str
    finished: bool
    curves: list[Curve]


def look_at(folder: Path, now: float) -> View:
    """The run of a folder.

    Args:
        now: seconds since the epoch.

    Raises:
        ValueError: the folder is no run's.
    """
    if not (folder / "config.yaml").is_file() and not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder} is no run folder: it has neither config.yaml nor metrics.jsonl")
    lines = read_metrics(folder / "metrics.jsonl")
    names = sorted({name for line in lines for name in line if name.startswith("accuracy/")})
    accuracies = {
        name: (f"accuracy on {name.removeprefix('accuracy/')}", "{:.2%}") for name in names
    }
    curves = [
        Curve(title, [line["step"] for line in found], [line[key] for line in found], form)
        for key, (title, form) in {"loss": DRAWN["loss"], **accuracies, **DRAWN}.items()
        if (found := [line for line in lines if isinstance(line.get(key), int | float)])
    ]
    finished = (folder / "summary.json").is_file()
    return View(folder.name, _state(folder, lines, finished, now), finished, curves)


def _state(folder: Path, lines: list[dict[str, float]], finished: bool, now: float) -> str:
    if not lines:
        return "has written no numbers yet"
    last = lines[-1]["step"]
    epochs = [line["epoch"] for line in lines if "epoch" in line]
    far = f"step {last:.0f}" + (f", epoch {epochs[-1]:.2f}" if epochs else "")
    if finished:
        return f"finished at {far}"
    if (folder / "stopped.json").is_file():
        return f"stopped at {far}, the same command goes on"
    seconds = max(now - (folder / "metrics.jsonl").stat().st_mtime, 0)
    return f"{far}, last numbers {seconds:.0f} s ago"


def in_terminal(view: View) -> str:
    """The view as text, a line a curve."""
    rows = [f"{view.name}: {view.state}"]
    width = max((len(curve.title) for curve in view.curves), default=0)
    for curve in view.curves:
        values = thinned(curve.value, COLUMNS)
        bars = sparkline([0.0] * len(values) if curve.flat else values)
        rows.append(f"  {curve.title:{width}}  {bars:{COLUMNS}}  {curve.last}  ({curve.span})")
    return "\n".join(rows)


def sparkline(values: Sequence[float]) -> str:
    """A bar for each value, the lowest the smallest."""
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / ((high - low) or 1.0)
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)


def thinned(values: Sequence[float], most: int) -> list[float]:
    """At most so many, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def write_watch_page(path: Path, view: View, refresh_seconds: float) -> None:
    """One HTML file that needs nothing beside it, and that a browser loads again by itself."""
    refresh = 0 if view.finished else max(round(refresh_seconds), 1)
    page = PAGES.get_template("watch.html").render(view=view, refresh=refresh)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)


def latest_numbers(view: View) -> dict[str, Any]:
    """The last numbers, for a program."""
    last = {curve.title: curve.value[-1] for curve in view.curves}
    return {"run": view.name, "state": view.state, "last": last}
