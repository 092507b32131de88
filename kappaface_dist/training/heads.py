"""The heads of a run from its configuration: one of each dataset."""

import logging
from collections.abc import Mapping

import numpy as np
import torch

from kappaface_dist.config.datasets import datasets, weights
from kappaface_dist.config.keys import Config
from kappaface_dist.head import Heads, PartialFC, build_margin
from kappaface_dist.training.optim import build_row_optimizer

logger = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_heads(
    config: Config, count_C: np.ndarray | Mapping[str, np.ndarray], device: torch.device
) -> PartialFC | Heads:
    """A head for each dataset of the configuration.

    Args:
        count_C: images of each class; of several datasets by their names.
    """
    owns = datasets(config)
    counts = {"": count_C} if isinstance(count_C, np.ndarray) else count_C
    heads = {name: build_head(own, counts[name], device) for name, own in owns.items()}
    if "" in heads:
        return heads[""]
    images = {name: own.data.batch_size for name, own in owns.items()}
    listed = ", ".join(f"{name} {number}" for name, number in images.items())
    logger.info("images of a batch of %d by dataset: %s", config.data.batch_size, listed)
    return Heads(heads, list(images.values()), weights(config))


def build_head(config: Config, count_C: np.ndarray, device: torch.device) -> PartialFC:
    """The sharded head for classes of count_C images."""
    if config.head.fused is True:
        logger.info("head.fused is true, which means auto now; false means off")
    return PartialFC(
        len(count_C),
        config.backbone.embedding_size,
        build_margin(**config.margin),
        images_per_class=count_C,
        sample_rate=config.head.sample_rate_in(0),
        optimizer=build_row_optimizer(
            config.optimizer.name,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
            momentum_dtype=DTYPES.get(config.head.momentum_dtype),  # none is in no table
            square_by_row=config.head.second_moment == "row",
        ),
        dtype=DTYPES[config.head.dtype],
        centre_dtype=DTYPES[config.head.centre_dtype],
        logit_cache_bytes=config.head.logit_cache_bytes,
        filter_threshold=config.head.filter_threshold,
        skip_mass=config.head.skip_mass,
        fused=config.head.fused,
        robust=config.head.robust,
        sub_centres=config.head.sub_centres,
        seed=config.run.seed,
        device=device,
    )
