"""A job without a dataset: the real networks, heads and optimizer, and random images.

Shapes: B images on this rank, H W image size, C all classes.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.head import PartialFC
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.planning.job_size import IMAGES_PER_CLASS
from kappaface_dist.training.build import Learner, build_learner
from kappaface_dist.training.heads import build_head


def at_largest_rate(config: Config) -> Config:
    """The job in the epochs of its largest sample rates, where it needs most."""
    head = replace(config.head, sample_rate=config.head.largest_sample_rate)
    train = config.data.train
    if isinstance(train, dict) and config.data.merge is None:
        rates = {name: own.head.largest_sample_rate for name, own in datasets(config).items()}
        train = {name: replace(own, sample_rate=rates[name]) for name, own in train.items()}
    return replace(config, head=head, data=replace(config.data, train=train))


def made_up_head(config: Config, num_classes: int, device: torch.device) -> PartialFC:
    """The head of config for classes of equal size, at its largest sample rate."""
    return build_head(at_largest_rate(config), np.full(num_classes, IMAGES_PER_CLASS), device)


def made_up_job(config: Config, num_classes: int | Sequence[int], device: torch.device) -> Learner:
    """What learns in a run of config, for classes of equal size, at its largest sample rate.

    Args:
        num_classes: of several datasets those of each.
    """
    sizes = zip(datasets(config), _each(num_classes), strict=True)
    counts = {name: np.full(number, IMAGES_PER_CLASS) for name, number in sizes}
    return build_learner(at_largest_rate(config), counts, device)


def random_batches(
    config: Config, num_classes: int | Sequence[int], device: torch.device
) -> list[Batch]:
    """The micro-batches of one step of this rank: noise, and random labels.

    Args:
        num_classes: of several datasets those of each.

    Raises:
        ValueError: the images of the run have several labels each that count.
    """
    if config.data.labels == "mean":
        raise ValueError(
            "data.labels is mean, and made-up images have one label each: set it to first, with"
            " data.batch_size times the labels of an image for the head's part"
        )
    owns = [own.data.batch_size for own in datasets(config).values()]
    generator = torch.Generator().manual_seed(parallel.rank())
    shape = (config.data.batch_size, 3, config.data.image_size, config.data.image_size)
    batches = []
    for _ in range(config.optimizer.accumulate):
        image_B3HW = torch.rand(shape, generator=generator) * 2 - 1
        labels = [
            torch.randint(number, (images,), generator=generator)
            for number, images in zip(_each(num_classes), owns, strict=True)
        ]
        label_B = torch.cat(labels)
        slot_B = torch.randint(IMAGES_PER_CLASS, shape[:1], generator=generator).int()
        stored_BT = None
        if config.distill.cache is not None:  # as large as the network's own
            size = config.backbone.embedding_size
            stored_BT = torch.randn(shape[0], size, generator=generator).half().to(device)
        images = image_B3HW.to(device), label_B.to(device)
        batches.append(Batch(*images, slot_B=slot_B.to(device), stored_BT=stored_BT))
    return batches


def _each(num_classes: int | Sequence[int]) -> Sequence[int]:
    return [num_classes] if isinstance(num_classes, int) else num_classes
