"""What can be wrong with a head's settings or with a gathered batch, in words.

All ranks see the same batch, so all come to the same sentence.
Shapes: G images on all ranks, D embedding size.
"""

import numpy as np
import torch

from kappaface_dist.head.softmax.settings import LARGEST_SCALE, Softmax
from kappaface_dist.parallel import ranks as parallel


def check_images(images_per_class: np.ndarray | None, num_classes: int) -> None:
    """Raise ValueError unless there is a count for every class."""
    if images_per_class is not None and len(images_per_class) != num_classes:
        raise ValueError(
            f"images_per_class has {len(images_per_class)} entries for {num_classes} classes"
        )


def check_softmax(
    softmax: Softmax, sample_rate: float, logit_cache_bytes: int, split_centres: bool | None
) -> None:
    """Raise ValueError for settings of PartialFC that cannot be meant."""
    scale, filter_threshold, dtype = softmax.scale, softmax.filter_threshold, softmax.dtype
    largest_scale = LARGEST_SCALE / softmax.largest_cosine
    if not 0.0 < scale <= largest_scale:
        raise ValueError(
            f"margin.scale is {scale}: it must be above 0 and at most"
            f" {largest_scale:g}, the range in which the softmax is exact in fp32"
        )
    if not 0.0 < sample_rate <= 1.0:
        raise ValueError(f"head.sample_rate is {sample_rate}: it is a share, above 0 up to 1")
    if filter_threshold is not None and not 0.0 < filter_threshold < 1.0:
        raise ValueError(
            f"head.filter_threshold is {filter_threshold}: it is a cosine, above 0 and below 1;"
            " leave it out to filter nothing"
        )
    if logit_cache_bytes < 0:
        raise ValueError(f"head.logit_cache_bytes is {logit_cache_bytes}: use 0 or more")
    if not 0.0 <= softmax.skip_mass < 1.0:
        raise ValueError(
            f"head.skip_mass is {softmax.skip_mass}: it is a share, from 0 (exact) to below 1"
        )
    if softmax.skip_mass and softmax.largest_cosine != 1.0:
        raise ValueError(
            f"head.skip_mass is {softmax.skip_mass}, but this margin changes the other classes'"
            " logits, whose mass is then not their gradient's: set it to 0"
        )
    if split_centres and dtype != torch.bfloat16:
        raise ValueError(
            f"head.split_centres needs bf16 products, but head.dtype is {dtype}: set it to bf16"
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
