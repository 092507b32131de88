"""A job without a dataset: the real networks, head and optimizer, and random images.

Shapes: B images on this rank, H W image size, C all classes.
"""

from dataclasses import replace

import numpy as np
import torch

from kappaface_dist.config.keys import Config
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.head import PartialFC
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import Learner, build_learner
from kappaface_dist.training.heads import build_head

IMAGES_PER_CLASS = 40  # as plan.py takes where it is not told


def at_largest_rate(config: Config) -> Config:
    """The job in the epochs of its largest sample rate, where it needs most."""
    head = replace(config.head, sample_rate=config.head.largest_sample_rate)
    return replace(config, head=head)


def made_up_head(config: Config, num_classes: int, device: torch.device) -> PartialFC:
    """The head of config for classes of equal size, at its largest sample rate."""
    return build_head(at_largest_rate(config), np.full(num_classes, IMAGES_PER_CLASS), device)


def made_up_job(config: Config, num_classes: int, device: torch.device) -> Learner:
    """What learns in a run of config, for classes of equal size, at its largest sample rate."""
    return build_learner(at_largest_rate(config), np.full(num_classes, IMAGES_PER_CLASS), device)


def only_head(learner: Learner) -> PartialFC:
    """The head of a job of one dataset, which is what is measured at a time."""
    assert isinstance(learner.head, PartialFC)
    return learner.head


def random_batches(config: Config, num_classes: int, device: torch.device) -> list[Batch]:
    """The micro-batches of one step of this rank: noise, and random labels.

    Raises:
        ValueError: the images of the run have several labels each that count.
    """
    if config.data.labels == "mean":
        raise ValueError(
            "data.labels is mean, and made-up images have one label each: set it to first, with"
            " data.batch_size times the labels of an image for the head's part"
        )
    generator = torch.Generator().manual_seed(parallel.rank())
    shape = (config.data.batch_size, 3, config.data.image_size, config.data.image_size)
    batches = []
    for _ in range(config.optimizer.accumulate):
        image_B3HW = torch.rand(shape, generator=generator) * 2 - 1
        label_B = torch.randint(num_classes, shape[:1], generator=generator)
        slot_B = torch.randint(IMAGES_PER_CLASS, shape[:1], generator=generator).int()
        stored_BT = None
        if config.distill.cache is not None:  # as large as the network's own
            size = config.backbone.embedding_size
            stored_BT = torch.randn(shape[0], size, generator=generator).half().to(device)
        images = image_B3HW.to(device), label_B.to(device)
        batches.append(Batch(*images, slot_B=slot_B.to(device), stored_BT=stored_BT))
    return batches
