"""What can be wrong with a head's counts or with a gathered batch, in words.

All ranks see the same batch, so all come to the same sentence.
Shapes: G images on all ranks, K classes of this shard, R rows of them, D embedding size; X any.
"""

from typing import NamedTuple

import numpy as np
import torch

from kappaface_dist.parallel import ranks as parallel

# Rows of the shard that are looked at in one go; of a large one this share, for fewer waits.
CHECKED_ROWS, CHECKED_SHARE = 256, 1 / 256


def check_images(images_per_class: np.ndarray | None, num_classes: int) -> None:
    """Raise ValueError unless there is a count for every class."""
    if images_per_class is not None and len(images_per_class) != num_classes:
        raise ValueError(
            f"images_per_class has {len(images_per_class)} entries for {num_classes} classes"
        )


def check_labels(label_G: torch.Tensor, num_classes: int) -> None:
    """Raise ValueError for a label outside 0..num_classes-1."""
    place, label = map(int, first_wrong_label(label_G, num_classes))
    if place >= 0:
        raise ValueError(wrong_label(place, label, len(label_G), num_classes))


def check_announced(as_announced_G: torch.Tensor) -> None:
    """Raise ValueError unless the labels are those that were announced for the step."""
    place = int(first_true(~as_announced_G))
    if place >= 0:
        raise ValueError(
            f"{_image(place, len(as_announced_G))} has another label than head.announce() was told:"
            " hand in the micro-batches in the order of the announced labels"
        )


class BatchEvidence(NamedTuple):
    """What is wrong with a gathered batch; a place among its images is -1 where nothing is.

    Attributes:
        label_place: of the first label that the head has no class for.
        label: that label.
        embedding_place: of the first embedding that is not finite.
        num_images: of the batch.
    """

    label_place: int
    label: int
    embedding_place: int
    num_images: int


def batch_evidence(
    embedding_GD: torch.Tensor, label_G: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """The numbers of a BatchEvidence, int64 on the batch's device, without waiting for it."""
    largest_G = torch.linalg.vector_norm(embedding_GD, torch.inf, dim=1)
    numbers = [
        *first_wrong_label(label_G, num_classes),
        first_true(~largest_G.isfinite()),
        torch.full((), len(label_G), device=label_G.device),
    ]
    return torch.stack(numbers)


def first_wrong_label(label_G: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Place of the first label outside 0..num_classes-1, or -1, and that label."""
    place = first_true((label_G < 0) | (label_G >= num_classes))
    return place, label_G.take(place.clamp(min=0))


def all_finite(weight_KD: torch.Tensor) -> bool:
    """Whether all are; some rows at a time, since a norm of them all would copy them all."""
    step = max(CHECKED_ROWS, int(len(weight_KD) * CHECKED_SHARE))
    return all(bool(rows_RD.isfinite().all()) for rows_RD in weight_KD.split(step))


def first_true(flag_X: torch.Tensor) -> torch.Tensor:
    """Place of the first flag that is set, or -1; a 0-dimensional tensor on the same device."""
    return torch.where(flag_X.any(), flag_X.int().argmax(), -1)


def wrong_label(place: int, label: int, num_images: int, num_classes: int) -> str:
    """In words: a label outside 0..num_classes-1."""
    return (
        f"{_image(place, num_images)} has label {label}, but the head has {num_classes} classes:"
        f" labels run from 0 to {num_classes - 1}"
    )


def wrong_embedding(place: int, num_images: int) -> str:
    """In words: an embedding that is not finite."""
    return f"{_image(place, num_images)} has an embedding that is not finite"


def _image(place: int, num_images: int) -> str:
    rank, image = divmod(place, num_images // parallel.world_size())
    return f"image {image} of the batch of rank {rank}"
