"""Whether a class of low concentration is hard, or holds photos that are not its own.

The label report's judgement (`evaluation/label_noise.py`) of the photos that a margin report
embeds: a class is dirty where without the photos that are probably wrong more than half of what
separates its concentration from the median class's is gone.
Shapes: I embedded photos, C classes that are judged, D embedding size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from kappaface_dist.evaluation.label_noise import PROBABLE, find_label_noise
from kappaface_dist.head.margins.resultant import concentration
from kappaface_dist.margin_study.reliability import Embedded

KINDS = {
    "hard": ("tab:blue", "no photo is probably wrong"),
    "dirty": ("tab:red", "dirty: the wrong ones are most of what makes it look hard"),
    "both": ("tab:purple", "both: it is hard without them, too"),
}


@dataclass(frozen=True)
class ClassNoise:
    """Attributes:
    class_C: which classes were judged.
    photos_C, wrong_C: how many photos of each, and how many of those are probably wrong: they sit
        in another class, or are the smaller part of a class that is two people.
    two_C: whether the class is probably two people.
    kappa_C, clean_C: concentration of its photos, and without the wrong ones; NaN of fewer than
        two.
    median: of clean_C; NaN where no class has two photos.
    wrong: numbers in the data of the photos that are probably wrong.
    notes: what could not be judged.
    """

    class_C: np.ndarray
    photos_C: np.ndarray
    wrong_C: np.ndarray
    two_C: np.ndarray
    kappa_C: np.ndarray
    clean_C: np.ndarray
    median: float
    wrong: frozenset[int]
    notes: list[str]

    def kind(self, place: int) -> str:
        """ "hard": no photo is probably wrong; "dirty": some are, and without them more than half
        of what it lacks to the median is gone; "both": the others lack more than that, too.
        """
        if not self.wrong_C[place]:
            return "hard"
        clean = self.clean_C[place]
        return "both" if self.median - clean >= clean - self.kappa_C[place] else "dirty"

    def summary(self) -> dict[str, Any]:
        """What is known of the photos and of each class, ready for JSON."""
        return {
            "photos": int(self.photos_C.sum()),
            "wrong": int(self.wrong_C.sum()),
            "median": _known(self.median),
            "notes": self.notes,
            "classes": self._entries(),
        }

    def _entries(self) -> list[dict[str, Any]]:
        return [
            {
                "class": int(self.class_C[c]),
                "photos": int(self.photos_C[c]),
                "wrong": int(self.wrong_C[c]),
                "wrong_share": float(self.wrong_C[c] / self.photos_C[c]),
                "two_people": bool(self.two_C[c]),
                "concentration_of_photos": _known(self.kappa_C[c]),
                "without_wrong": _known(self.clean_C[c]),
                "kind": self.kind(c),
            }
            for c in range(len(self.class_C))
        ]


def _known(kappa: float) -> float | None:
    return float(kappa) if np.isfinite(kappa) else None


def judge_classes(embedded: Embedded, max_resultant: float) -> ClassNoise | None:
    """Judge the embedded photos and their classes; None where there is no photo.

    Args:
        max_resultant: as of the margin.
    """
    if not len(embedded.label_I):
        return None
    class_C, label_I = np.unique(embedded.label_I, return_inverse=True)
    noise = find_label_noise(embedded.embedding_ID.astype(np.float32), label_I)
    two_C = np.zeros(len(class_C), dtype=bool)
    two_C[: len(noise.two_C)] = noise.two_C >= PROBABLE
    wrong_I = noise.wrong_I >= PROBABLE
    second_C, first_C = (
        np.bincount(label_I[part_I & ~wrong_I], minlength=len(class_C))
        for part_I in (noise.second_I, ~noise.second_I)
    )
    smaller_I = noise.second_I == (second_C <= first_C)[label_I]
    wrong_I |= two_C[label_I] & smaller_I
    clean_C = _concentrations(embedded.embedding_ID, label_I, ~wrong_I, max_resultant)
    measured = clean_C[np.isfinite(clean_C)]
    index_I = embedded.index_I if embedded.index_I is not None else np.arange(len(label_I))
    return ClassNoise(
        class_C=class_C,
        photos_C=np.bincount(label_I),
        wrong_C=np.bincount(label_I, weights=wrong_I).astype(np.int64),
        two_C=two_C,
        kappa_C=_concentrations(
            embedded.embedding_ID, label_I, np.ones_like(wrong_I), max_resultant
        ),
        clean_C=clean_C,
        median=float(np.median(measured)) if len(measured) else float("nan"),
        wrong=frozenset(index_I[wrong_I].tolist()),
        notes=noise.notes,
    )


def _concentrations(
    embedding_ID: np.ndarray, label_I: np.ndarray, used_I: np.ndarray, max_resultant: float
) -> np.ndarray:
    """κ of each class from the used photos, by the unbiased ρ²; NaN of fewer than two."""
    sum_CD = np.zeros((int(label_I.max()) + 1, embedding_ID.shape[1]))
    np.add.at(sum_CD, label_I[used_I], embedding_ID[used_I])
    size_C = np.bincount(label_I[used_I], minlength=len(sum_CD)).astype(np.float64)
    pairs_C = np.where(size_C > 1, size_C * (size_C - 1), np.nan)
    squared_C = (np.square(sum_CD).sum(axis=1) - size_C) / pairs_C
    root_C = torch.from_numpy(squared_C.clip(0.0, max_resultant**2)).sqrt()
    return concentration(root_C, embedding_ID.shape[1]).numpy()


def draw_noise(noise: ClassNoise) -> Figure:
    """Concentration of each class without its wrong photos over that with them."""
    figure = Figure(figsize=(8, 6), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    kind_C = np.array([noise.kind(c) for c in range(len(noise.class_C))])
    known_C = np.isfinite(noise.kappa_C) & np.isfinite(noise.clean_C)
    for kind, (colour, words) in KINDS.items():
        mask_C = known_C & (kind_C == kind)
        axes.scatter(
            noise.kappa_C[mask_C],
            noise.clean_C[mask_C],
            s=12 + 120 * noise.wrong_C[mask_C] / noise.photos_C[mask_C],
            color=colour,
            alpha=0.6,
            linewidths=0,
            label=f"{words} ({(kind_C == kind).sum()} classes)",
        )
    # A few classes of nearly equal photos would leave all others in a corner.
    high = float(np.percentile(noise.clean_C[known_C], 99)) * 1.05 if known_C.any() else 1.0
    axes.plot([0, high], [0, high], color="0.6", linewidth=1, zorder=0)
    if np.isfinite(noise.median):
        axes.axhline(noise.median, color="0.4", linewidth=1, zorder=0)
        axes.text(high, noise.median, "median class ", ha="right", va="bottom", color="0.4")
        halfway = [noise.median / 2, noise.median]
        axes.plot([0, noise.median], halfway, color="0.4", linestyle="--", linewidth=1, zorder=0)
    axes.set(
        xlabel="concentration of its photos (left: looks hard)",
        ylabel="without those that are probably wrong (low: is hard)",
        title="Hard or dirty? Larger: a larger share of wrong photos",
        xlim=(0, high),
        ylim=(0, high),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    return figure
