"""What KappaFace made of a run's classes in numbers: margins, concentrations, who is hard.

Shapes: C classes, I images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kappaface_dist.checkpoint import tensors as checkpoint
from kappaface_dist.checkpoint.folder import CHECKSUMS, complete_checkpoints, read_numbers
from kappaface_dist.checkpoint.transplant import head_prefix
from kappaface_dist.config.datasets import datasets, paths
from kappaface_dist.config.file import load_config
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.head import KappaFace, build_margin
from kappaface_dist.training.fit import open_here
from kappaface_dist.training.head_log import by_dataset
from kappaface_dist.training.metrics_file import read_metrics

NUM_SHOWN = 8  # hardest classes, and easiest ones
# Upper ends of the classes' sizes in the table; the last row has the rest.
SIZE_BOUNDS = (2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class ClassMeasures:
    """A checkpoint's classes.

    Attributes:
        margin: the settings that the run was trained with.
        count_C: images of each class.
        margin_C: radians.
        kappa_C: concentration; NaN where none was measured: the class is neutral.
        history: the lines of metrics.jsonl with quantiles of the concentrations, up to the
            checkpoint.
        dataset: which of several, by its name.
    """

    folder: Path
    step: int
    margin: KappaFace
    catalog: Catalog
    count_C: np.ndarray
    margin_C: np.ndarray
    kappa_C: np.ndarray
    history: list[dict[str, float]]
    dataset: str = ""


def read_measures(path: Path, train: str | None = None, dataset: str = "") -> ClassMeasures:
    """Read a run folder's last checkpoint, or a checkpoint inside a run folder.

    Args:
        train: where the run's data is now, if not where its config.yaml says.
        dataset: which of several, by its name.

    Raises:
        ValueError: nothing usable is there, the run's margin has no concentrations, or the data is
            not that of the run.
    """
    folder = _checkpoint(path)
    run = folder.resolve().parents[1]
    if not (run / "config.yaml").is_file():
        raise ValueError(
            f"{folder} is a checkpoint without its run: {run / 'config.yaml'} says what it was"
            " trained with, put the checkpoint back into RUN/checkpoints"
        )
    owns = datasets(load_config(run / "config.yaml"))
    if dataset not in owns:
        known = "one dataset" if "" in owns else f"the datasets {', '.join(owns)}"
        remedy = "leave out --dataset" if "" in owns else "name one of them with --dataset"
        raise ValueError(f"{run} was trained on {known}: {remedy}")
    config, prefix = owns[dataset], head_prefix(dataset)
    margin = build_margin(**config.margin)
    if not isinstance(margin, KappaFace):
        raise ValueError(
            f"{run} was trained with margin.name={config.margin['name']}, which keeps no"
            " concentrations: only runs with kappaface have a report"
        )
    num_classes = checkpoint.stored_shapes(folder)[f"{prefix}margin"][0]
    names = (f"{prefix}margin", f"{prefix}statistics.kappa")
    tensors = {name: torch.empty(num_classes) for name in names}
    checkpoint.load_alone(folder, tensors)
    catalog = open_here(config, train)
    place = train or ", ".join(map(str, paths(config).values()))
    if catalog.num_classes != num_classes:
        raise ValueError(
            f"{place} has {catalog.num_classes} classes, the checkpoint"
            f" {num_classes}: name the data of this run with --train"
        )
    step = read_numbers(folder)["run"]["step"]
    lines = read_metrics(run / "metrics.jsonl")
    own_lines = [line | by_dataset(line).get(dataset, {}) for line in lines]
    return ClassMeasures(
        folder=folder,
        step=step,
        margin=margin,
        catalog=catalog,
        count_C=np.asarray(catalog.count_C),
        margin_C=tensors[names[0]].numpy(),
        kappa_C=tensors[names[1]].numpy(),
        history=[x for x in own_lines if "concentration_p50" in x and x["step"] <= step],
        dataset=dataset,
    )


def _checkpoint(path: Path) -> Path:
    if (path / CHECKSUMS).is_file():
        return path
    found = complete_checkpoints(path / "checkpoints")
    if not found:
        raise ValueError(f"{path} is neither a complete checkpoint nor a run folder with one")
    return found[-1]


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on, equal values sharing the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's coefficient; None where one of the two does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first.astype(np.float64), second.astype(np.float64))[0, 1])


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's coefficient; None where one of the two does not vary."""
    return correlation(average_ranks(first), average_ranks(second))


def margin_summary(classes: ClassMeasures) -> dict[str, Any]:
    """The numbers of the report, ready for JSON. Classes without an image are left out."""
    used_C = classes.count_C > 0
    count_C, margin_C = classes.count_C[used_C], classes.margin_C[used_C]
    kappa_C = classes.kappa_C[used_C]
    measured_C = np.isfinite(kappa_C)
    return {
        "checkpoint": str(classes.folder),
        "step": classes.step,
        "classes": len(count_C),
        "images": int(count_C.sum()),
        "margin": {
            "min": float(margin_C.min()),
            "mean": float(margin_C.mean()),
            "mean_over_images": float(np.average(margin_C, weights=count_C)),
            "max": float(margin_C.max()),
        },
        "neutral_share": float(1 - measured_C.mean()),
        "correlation": {
            "margin_with_log_images_pearson": correlation(margin_C, np.log(count_C)),
            "margin_with_images_spearman": spearman(margin_C, count_C),
            "concentration_with_log_images_pearson": correlation(
                kappa_C[measured_C], np.log(count_C[measured_C])
            ),
            "concentration_with_images_spearman": spearman(
                kappa_C[measured_C], count_C[measured_C]
            ),
        },
        "by_images": list(_by_images(count_C, margin_C, kappa_C)),
        "hardest": [_class_entry(classes, c) for c in hardest(classes, NUM_SHOWN)],
        "easiest": [_class_entry(classes, c) for c in easiest(classes, NUM_SHOWN)],
    }


def hardest(classes: ClassMeasures, num: int) -> list[int]:
    """The classes of the lowest concentrations, lowest first."""
    return _by_concentration(classes)[:num].tolist()


def easiest(classes: ClassMeasures, num: int) -> list[int]:
    """The classes of the highest concentrations, highest first."""
    return _by_concentration(classes)[::-1][:num].tolist()


def _by_concentration(classes: ClassMeasures) -> np.ndarray:
    measured = np.flatnonzero(np.isfinite(classes.kappa_C))
    return measured[np.argsort(classes.kappa_C[measured], kind="stable")]


def _class_entry(classes: ClassMeasures, number: int) -> dict[str, Any]:
    names = classes.catalog.class_names
    return {
        "class": number,
        "name": names[number] if names is not None else None,
        "images": int(classes.count_C[number]),
        "concentration": float(classes.kappa_C[number]),
        "margin": float(classes.margin_C[number]),
    }


def _by_images(
    count_C: np.ndarray, margin_C: np.ndarray, kappa_C: np.ndarray
) -> Iterator[dict[str, Any]]:
    low = 0
    for high in (*SIZE_BOUNDS, int(count_C.max())):
        mask_C = (count_C > low) & (count_C <= high)
        if mask_C.any():
            known_C = kappa_C[mask_C][np.isfinite(kappa_C[mask_C])]
            yield {
                "images": [int(count_C[mask_C].min()), int(count_C[mask_C].max())],
                "classes": int(mask_C.sum()),
                "margin_mean": float(margin_C[mask_C].mean()),
                "margin_min": float(margin_C[mask_C].min()),
                "margin_max": float(margin_C[mask_C].max()),
                "concentration_median": float(np.median(known_C)) if len(known_C) else None,
                "neutral_share": float(1 - len(known_C) / mask_C.sum()),
            }
        low = max(low, high)
