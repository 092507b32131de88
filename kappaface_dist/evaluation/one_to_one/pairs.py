"""1:1 verification on a set of pairs (LFW and its kind).

Shapes: P pairs, D embedding size, T thresholds, H W image size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from kappaface_dist.data.images import decode_image
from kappaface_dist.evaluation.embedding.embed import embed_images
from kappaface_dist.evaluation.folds import order_for_folds
from kappaface_dist.evaluation.protocol import (
    Roc,
    best_accuracy,
    curve_numbers,
    fold_accuracies,
)
from kappaface_dist.evaluation.sets.pair_file import PairFile

# Luma of ITU-R BT.601, as the field's image libraries make grey.
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class PairResult:
    """What a set of pairs says about a model; None stands for what the set cannot say.

    accuracy is the mean over ten folds, accuracy_std its standard deviation over them; tar_at_far
    has the keys "1e-1" to "1e-6", None where there are not enough different pairs. note says why
    numbers are missing, or what was done to have them; it is empty when there is nothing to say.
    """

    num_pairs: int
    num_same: int
    accuracy: float | None
    accuracy_std: float | None
    auc: float | None
    eer: float | None
    tar_at_far: dict[str, float | None]
    note: str
    distance_P: np.ndarray
    roc: Roc | None

    def summary(self) -> dict[str, Any]:
        """The numbers without the arrays, ready for JSON."""
        return {
            "accuracy": self.accuracy,
            "accuracy_std": self.accuracy_std,
            "auc": self.auc,
            "eer": self.eer,
            "tar_at_far": self.tar_at_far,
            "num_pairs": self.num_pairs,
            "num_same": self.num_same,
            "note": self.note,
        }


def evaluate_pairs(
    model: nn.Module,
    pairs: PairFile,
    *,
    image_size: int,
    batch_size: int = 64,
    device: torch.device,
    progress: Callable[[int], object] | None = None,
) -> PairResult:
    """Verify a model on a set of pairs; to be called by all ranks, with one result on all.

    Args:
        model: maps image_B3HW to embedding_BD, on device; it comes back in the mode it was in.
        batch_size: images per forward pass. It is the unit of work that ranks share.
        progress: see embed_images.

    Raises:
        ValueError: an image of the set is not readable.
    """
    embedding_MD = embed_images(
        model,
        pairs.payloads,
        image_size=image_size,
        batch_size=batch_size,
        device=device,
        describe=lambda index: f"image {index % 2 + 1} of pair {index // 2}",
        progress=progress,
    )
    difference_PD = embedding_MD[0::2] - embedding_MD[1::2]
    return score_pairs(np.square(difference_PD).sum(axis=1), pairs.same_P)


def score_pairs(distance_P: np.ndarray, same_P: np.ndarray) -> PairResult:
    """All numbers from squared distances of unit embeddings.

    Raises:
        ValueError: a distance is not finite.
    """
    if not np.isfinite(distance_P).all():
        raise ValueError(
            f"{np.sum(~np.isfinite(distance_P))} of {len(distance_P)} pairs have a distance that is"
            " not a number: the model's embeddings are not finite, has its training diverged?"
        )
    found = curve_numbers(distance_P, same_P)
    accuracy, accuracy_std, note = None, None, found.note
    if found.curve is None:
        note += (
            ": a threshold that answers alike for every pair is always right, so an accuracy means"
            " nothing"
        )
    else:
        order_P, remark = order_for_folds(same_P)
        note = "; ".join(part for part in (remark, note) if part)
        if order_P is not None:
            accuracy_F = fold_accuracies(distance_P[order_P], same_P[order_P])
            accuracy, accuracy_std = float(accuracy_F.mean()), float(accuracy_F.std())
    return PairResult(
        num_pairs=len(same_P),
        num_same=int(same_P.sum()),
        accuracy=accuracy,
        accuracy_std=accuracy_std,
        auc=found.auc,
        eer=found.eer,
        tar_at_far=found.tar_at_far,
        note=note,
        distance_P=distance_P,
        roc=found.curve,
    )


def pixel_baseline(pairs: PairFile, size: int = 40) -> float | None:
    """Accuracy of comparing pixels, which a face model must beat; None if one kind of pairs only.

    The score of a pair is the cosine between its two images as grey values at size x size pixels;
    the threshold is the best for these very pairs, so the number flatters the baseline.

    Raises:
        ValueError: an image of the set is not readable.
    """
    if pairs.same_P.all() or not pairs.same_P.any():
        return None
    vectors: dict[bytes, np.ndarray] = {}
    for index, payload in enumerate(pairs.payloads):
        if payload in vectors:
            continue
        try:
            grey = decode_image(payload, size) @ GREY_WEIGHTS
        except ValueError as error:
            raise ValueError(f"image {index % 2 + 1} of pair {index // 2}: {error}") from error
        vectors[payload] = grey.ravel() / max(float(np.linalg.norm(grey)), 1e-12)
    cosine_P = np.array(
        [
            vectors[first] @ vectors[second]
            for first, second in zip(pairs.payloads[0::2], pairs.payloads[1::2], strict=True)
        ]
    )
    return best_accuracy(-cosine_P, pairs.same_P)
