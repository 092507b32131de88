"""Bytes that one rank of a job will hold, by item.

The backbone's are counted in one step on fake tensors, the head's rows on a head of a few classes,
its buffers by `head_buffers.py`. Call these functions inside `pretend_group.pretend_ranks`.
Shapes: K classes of this shard.
"""

import torch

from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config
from kappaface_dist.head import KappaFace, PartialFC, build_margin
from kappaface_dist.planning.backbone_memory import backbone_items
from kappaface_dist.planning.between_steps import operation_bytes
from kappaface_dist.planning.collectives import bytes_of_marks
from kappaface_dist.planning.head_buffers import (
    buffers_and_samples,
    cache_bytes,
    micro_batch_images,
    used_rows,
    without_kernels,
)
from kappaface_dist.planning.job_size import JobSize, jobs_of
from kappaface_dist.planning.made_up_job import made_up_head
from kappaface_dist.planning.memory_meter import num_bytes
from kappaface_dist.planning.teacher import teacher_items

CPU = torch.device("cpu")


def memory_items(config: Config, size: JobSize, device_type: str = "cpu") -> dict[str, int]:
    """Every item in bytes; they are added up as if all were there at once."""
    items = backbone_items(config, size.num_ranks, device_type)
    items |= head_items(config, size, device_type)
    if any(own.margin.get("source") == "encoder" for own in datasets(config).values()):
        items["momentum_encoder"] = items["backbone_parameters"]
    return items | teacher_items(config)


def head_items(config: Config, size: JobSize, device_type: str) -> dict[str, int]:
    """State of this rank's classes by kind, and the buffers of a step, of all datasets' heads."""
    items: dict[str, int] = {}
    for own, own_size in jobs_of(config, size):
        for name, value in _held_items(own, own_size, device_type).items():
            items[name] = items.get(name, 0) + value
    buffers = buffers_and_samples(config, size, device_type)
    if any(own.margin.get("refresh_steps") == 1 for own in datasets(config).values()):
        # Every step ends a window, when the step's buffers are free again, and one head's logits.
        window = operation_bytes(config, size)["a window's end"]
        free = items["logit_cache"] if len(datasets(config)) == 1 else 0
        buffers = max(buffers, window - free)
    return items | {"head_buffers": buffers}


def _held_items(config: Config, size: JobSize, device_type: str) -> dict[str, int]:
    """Of one head."""
    rows = size.classes_per_rank
    per_class = bytes_per_class(config, size.num_ranks)
    items = {name: int(slope * rows) for name, slope in per_class.items()}
    num_images = micro_batch_images(config, size)
    items["logit_cache"] = cache_bytes(config, num_images, used_rows(config, size), device_type)
    items["held_embeddings"] = held_bytes(config, size)
    if config.margin.get("source") == "memory":
        # Of the classes of a rank; where these differ in size, so do the ranks.
        images = -(-size.num_images // size.num_ranks)
        items["image_memory"] = 2 * config.backbone.embedding_size * images
    return items


def state_per_class(config: Config, size: JobSize) -> dict[str, float]:
    """`bytes_per_class` over the classes of all datasets."""
    total: dict[str, float] = {}
    for own, own_size in jobs_of(config, size):
        share = own_size.classes_per_rank / size.classes_per_rank
        for name, slope in bytes_per_class(own, size.num_ranks).items():
            total[name] = total.get(name, 0.0) + slope * share
    return total


def bytes_per_class(config: Config, num_ranks: int) -> dict[str, float]:
    """Bytes of state for each class of a shard: centres, their optimizer, statistics."""
    plain = without_kernels(config)
    few, more = (
        head_state_bytes(made_up_head(plain, count * num_ranks, CPU)) for count in (64, 192)
    )
    return {name: (more[name] - few[name]) / 128 for name in few}


def head_state_bytes(head: PartialFC) -> dict[str, int]:
    """Bytes that a head holds between steps, by kind."""
    state = head.sharded_state()
    statistics = head.class_margins.statistics
    own = [] if statistics is None else [t for t in vars(statistics).values() if torch.is_tensor(t)]
    optimizer = [t for name, t in state.items() if name.startswith("optimizer.")]
    known = {id(t) for t in [state["weight"], *optimizer]}
    others = {id(t): t for t in [*state.values(), *own] if id(t) not in known}
    return {
        "centres": num_bytes([state["weight"]]),
        "centre_optimizer": num_bytes(optimizer),
        "class_statistics": num_bytes(others.values()),
    }


def held_bytes(config: Config, size: JobSize) -> int:
    """What the class statistics hold of a step until the next one, in case an epoch ends in it."""
    margin = build_margin(**config.margin)
    if not isinstance(margin, KappaFace):
        return 0
    passes = 1 if config.optimizer.cache_embeddings else config.optimizer.accumulate
    # Embedding and cosine in fp32, row, whether it is this rank's, marks.
    per_image = 4 * config.backbone.embedding_size + 4 + 8 + 1 + max(bytes_of_marks(margin), 1)
    return micro_batch_images(config, size) * passes * per_image
