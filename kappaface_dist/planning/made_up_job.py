"""A job without a dataset: the real networks, head and optimizer, and random images.

Shapes: B images on this rank, H W image size, C all classes.
"""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from kappaface_dist.config.keys import Config
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.head import PartialFC
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import Job, build_head, build_network, wrap_for_training
from kappaface_dist.training.optim import build_optimizer

IMAGES_PER_CLASS = 50


def made_up_head(config: Config, num_classes: int, device: torch.device) -> PartialFC:
    """The head of config for classes of equal size."""
    count_C = np.full(num_classes, IMAGES_PER_CLASS)
    catalog = cast(Any, SimpleNamespace(num_classes=num_classes, count_C=count_C))
    return build_head(config, catalog, device)


def made_up_job(
    config: Config,
    num_classes: int,
    device: torch.device,
    *,
    network: nn.Module | None = None,
) -> Job:
    """What train_step needs; there is no catalog, loader or verification set in it.

    Args:
        network: taken instead of a new one.
    """
    network = build_network(config, device) if network is None else network
    return Job(
        config=config,
        device=device,
        catalog=cast(Any, None),
        pair_sets={},
        loader=cast(Any, None),
        network=network,
        backbone=wrap_for_training(config, network),
        head=made_up_head(config, num_classes, device),
        optimizer=build_optimizer(
            config.optimizer.name,
            network,
            lr=config.optimizer.lr,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
        ),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        global_batch=config.data.batch_size * parallel.world_size() * config.optimizer.accumulate,
        peak_lr=config.optimizer.lr,
    )


def random_batches(config: Config, num_classes: int, device: torch.device) -> list[Batch]:
    """The micro-batches of one step of this rank: noise, and random labels."""
    generator = torch.Generator().manual_seed(parallel.rank())
    shape = (config.data.batch_size, 3, config.data.image_size, config.data.image_size)
    batches = []
    for _ in range(config.optimizer.accumulate):
        image_B3HW = torch.rand(shape, generator=generator) * 2 - 1
        label_B = torch.randint(num_classes, shape[:1], generator=generator)
        batches.append(Batch(image_B3HW.to(device), label_B.to(device)))
    return batches
