"""What can be wrong with a head's counts or with a gathered batch, in words.

All ranks see the same batch, so all come to the same sentence.
Shapes: G images on all ranks, D embedding size.
"""

import numpy as np
import torch

from kappaface_dist.parallel import ranks as parallel


def check_images(images_per_class: np.ndarray | None, num_classes: int) -> None:
    """Raise ValueError unless there is a count for every class."""
    if images_per_class is not None and len(images_per_class) != num_classes:
        raise ValueError(
            f"images_per_class has {len(images_per_class)} entries for {num_classes} classes"
        )


def wrong_label(label_G: torch.Tensor, num_classes: int) -> str | None:
    """The first label outside 0..num_classes-1, or None."""
    wrong_G = (label_G < 0) | (label_G >= num_classes)
    if not wrong_G.any():
        return None
    return (
        f"{_first_image(wrong_G)} has label {int(label_G[wrong_G][0])}, but the head has"
        f" {num_classes} classes: labels run from 0 to {num_classes - 1}"
    )


def wrong_embedding(embedding_GD: torch.Tensor) -> str | None:
    """The first embedding that is not finite, or None."""
    wrong_G = ~embedding_GD.isfinite().all(dim=1)
    if not wrong_G.any():
        return None
    return f"{_first_image(wrong_G)} has an embedding that is not finite"


def _first_image(wrong_G: torch.Tensor) -> str:
    index = int(wrong_G.nonzero()[0])
    images_per_rank = len(wrong_G) // parallel.world_size()
    return f"image {index % images_per_rank} of the batch of rank {index // images_per_rank}"
