"""Whether a job fits this machine, before anything of its size is made: for --check."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.parallel.cores import local_world_size
from kappaface_dist.planning.between_steps import operation_bytes
from kappaface_dist.planning.host_memory import host_memory
from kappaface_dist.planning.job_size import JobSize, size_of_datasets
from kappaface_dist.planning.memory import memory_items, state_per_class
from kappaface_dist.planning.plan import USABLE_SHARE, largest_at_a_time
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.training.fit import open_here


def check_machine(config: Config) -> dict[str, Any]:
    """`check_fits` for this machine and the ranks that torchrun describes; before they join."""
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    catalogs = _opened(config)
    size = replace(
        size_of_datasets([(found.num_classes, found.num_images) for found in catalogs], num_ranks),
        labels_per_image=labels_per_image(config, catalogs),
    )
    gpu_bytes = None
    if torch.cuda.is_available():
        gpu_bytes = torch.cuda.get_device_properties(0).total_memory
    node_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    ranks_here = local_world_size()
    with pretend_ranks(num_ranks):
        return check_fits(config, size, gpu_bytes, node_bytes, ranks_here)


def counted(config: Config) -> list[tuple[int, int]]:
    """(classes, images) of each dataset of the configuration, which are here."""
    return [(found.num_classes, found.num_images) for found in _opened(config)]


def _opened(config: Config) -> list[Catalog]:
    return [open_here(own) for own in datasets(config).values()]


def labels_per_image(config: Config, catalogs: Sequence[Catalog]) -> int:
    """That the head sees each image of the data with, which is one dataset where they are many."""
    return catalogs[0].labels.shape[1] if config.data.labels == "mean" else 1


def check_fits(
    config: Config, size: JobSize, gpu_bytes: int | None, node_bytes: int, ranks_here: int
) -> dict[str, Any]:
    """What a rank will take; inside `pretend_ranks(size.num_ranks)`.

    Args:
        gpu_bytes: of a rank's GPU; None: it trains on the CPU, where the state alone is looked at.
        node_bytes: of this machine's own memory, which ranks_here ranks share.

    Raises:
        ValueError: it does not fit.
    """
    if gpu_bytes is not None:
        needed = largest_at_a_time(
            memory_items(config, size, "cuda"), operation_bytes(config, size)
        )
        if needed > USABLE_SHARE * gpu_bytes:
            raise ValueError(
                f"the job takes {needed / 1e9:.1f} GB of each GPU, which has"
                f" {gpu_bytes / 1e9:.1f} GB, {USABLE_SHARE:.0%} of it to be used: tools/plan.py"
                " says what takes it, and what to change"
            )
    else:
        needed = round(sum(state_per_class(config, size).values()) * size.classes_per_rank)
    host = host_memory(config, size, "cpu" if gpu_bytes is None else "cuda")
    on_node = ranks_here * (host.total_bytes + (needed if gpu_bytes is None else 0))
    if on_node > node_bytes:
        copies = ranks_here * host.items["checkpoint_copies"]
        raise ValueError(
            f"the ranks here ({ranks_here}) take {on_node / 1e9:.1f} GB of the machine's own"
            f" memory, which has {node_bytes / 1e9:.1f} GB; {copies / 1e9:.1f} GB of it are copies"
            " for checkpoints: lower checkpoint.host_bytes, or use more machines"
        )
    return {
        "planned_megabytes_per_rank": round(needed / 1e6, 1),
        "planned_host_megabytes": round(on_node / 1e6, 1),
    }
