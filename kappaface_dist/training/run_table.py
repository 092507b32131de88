"""Runs beside each other: the settings in which they differ, how far they came, and how well."""

import json
from pathlib import Path
from typing import Any

from kappaface_dist.config.file import load_config, to_dict
from kappaface_dist.models.summary_file import read_summary
from kappaface_dist.training.metrics_file import read_metrics

# They differ between any two runs, and say nothing.
NAMES = ("run.name", "run.folder")


def find_runs(folders: list[Path]) -> list[Path]:
    """The run folders among these, and in them.

    Raises:
        ValueError: there is none.
    """
    found = []
    for folder in folders:
        inside = sorted(folder.glob("*/config.yaml"))
        own = [folder] if (folder / "config.yaml").is_file() else []
        found += own or [path.parent for path in inside]
    if not found:
        places = ", ".join(map(str, folders))
        raise ValueError(f"there is no run in {places}: a run folder holds config.yaml")
    return list(dict.fromkeys(found))


def read_run(folder: Path) -> dict[str, Any]:
    """Settings by section.key, and results of one run."""
    lines = read_metrics(folder / "metrics.jsonl")
    logged = [line for line in lines if "loss" in line]
    accuracies: dict[str, float] = {}
    last: dict[str, float] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith("accuracy/"):
                accuracies[key] = max(value, accuracies.get(key, value))
                last[key] = value
    return {
        "settings": flat(to_dict(load_config(folder / "config.yaml"))),
        "state": _state(folder),
        "step": lines[-1]["step"] if lines else 0,
        "loss": logged[-1]["loss"] if logged else None,
        "images_per_second": logged[-1]["images_per_second"] if logged else None,
        "hours": _hours(folder),
        "best": accuracies,
        "last": last,
    }


def _state(folder: Path) -> str:
    if (folder / "summary.json").is_file():
        return "finished"
    return "stopped" if (folder / "stopped.json").is_file() else "not finished"


def _hours(folder: Path) -> float | None:
    """Of training, without evaluations and checkpoints; None before the end."""
    path = folder / "summary.json"
    if not path.is_file():
        return None
    summary = read_summary(path)
    return summary["images_seen"] / summary["images_per_second"] / 3600


def flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by their whole names; what is no section stays as it is."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{before}{key}.")
        else:
            found[before + key] = value
    return found


def differing(runs: dict[str, dict[str, Any]]) -> list[str]:
    """Names of the settings that are not the same in all runs."""
    everywhere = [run["settings"] for run in runs.values()]
    names = dict.fromkeys(name for settings in everywhere for name in settings)
    return [
        name
        for name in names
        if name not in NAMES
        and len({json.dumps(settings.get(name), default=str) for settings in everywhere}) > 1
    ]


def run_table(runs: dict[str, dict[str, Any]]) -> str:
    """A row a run: settings that differ, results, time."""
    names = differing(runs)
    sets = sorted({name for run in runs.values() for name in run["best"]})
    titles = ["run", *names, "state", "step", "loss", *sets, "images/s", "hours"]
    rows = [
        [
            folder,
            *(_shown(run["settings"].get(name)) for name in names),
            run["state"],
            str(run["step"]),
            _number(run["loss"], ".3f"),
            *(_number(run["best"].get(name), ".2%") for name in sets),
            _number(run["images_per_second"], ",.0f"),
            _number(run["hours"], ".2f"),
        ]
        for folder, run in runs.items()
    ]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [titles, *rows]
    ]
    return "\n".join(lines)


def _shown(value: object) -> str:
    return "-" if value is None else str(value)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
