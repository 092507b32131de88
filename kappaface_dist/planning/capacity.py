"""How many classes so many GPUs can hold, for each state of the centres."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kappaface_dist.config.keys import Config
from kappaface_dist.planning.between_steps import operation_bytes
from kappaface_dist.planning.memory import JobSize, bytes_per_class, memory_items
from kappaface_dist.planning.plan import largest_num_classes, usable_bytes
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.planning.step_time import Device

NUM_RANKS = (1, 8, 64, 512)
# By name: the optimizer, the type of the centres and that of its momentum.
STATES = {
    "sgd, bf16 centres, no momentum": ("sgd", "bf16", "none"),
    "sgd, bf16 centres and momentum": ("sgd", "bf16", "bf16"),
    "sgd, bf16 momentum": ("sgd", "fp32", "bf16"),
    "sgd": ("sgd", "fp32", "fp32"),
    "adamw": ("adamw", "fp32", "fp32"),
}
STATISTICS = {
    "no statistics": {"name": "arcface"},
    "target_cosine": {"name": "kappaface", "statistic": "target_cosine"},
    "resultant in bf16": {
        "name": "kappaface",
        "statistic": "resultant",
        "statistic_dtype": "bf16",
    },
    "resultant": {"name": "kappaface", "statistic": "resultant"},
}
# Of a rank: many enough for a logit cache at its limit, as in a large job.
CLASSES_OF_A_RANK = 1_000_000


@dataclass(frozen=True)
class Capacity:
    """Attributes:
    state: of the centres, and the statistics.
    bytes_per_class: of both, on the rank that owns it.
    largest: number of classes that fit, by the number of GPUs.
    """

    state: str
    bytes_per_class: float
    largest: dict[int, int]


def capacities(config: Config, device: Device) -> Iterator[Capacity]:
    """For each state; everything else is as config has it, but that of several datasets one stands
    for all.
    """
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=None))
    sgd = _changed(config, "sgd", ("fp32", "fp32"), STATISTICS["resultant"])
    sizes = {n: JobSize(CLASSES_OF_A_RANK * n, 1, n) for n in NUM_RANKS}
    memories = {}
    for num_ranks, size in sizes.items():
        with pretend_ranks(num_ranks):
            memories[num_ranks] = memory_items(sgd, size, device.kind)
    for state, (optimizer, *dtypes) in STATES.items():
        for statistic, margin in STATISTICS.items():
            changed = _changed(config, optimizer, dtypes, margin)
            with pretend_ranks(1):
                per_class = bytes_per_class(changed, 1)
                between = max(operation_bytes(changed, sizes[1]).values()) / CLASSES_OF_A_RANK
            largest = {}
            for num_ranks, memory in memories.items():
                held = memory
                if optimizer == "adamw":  # two moments
                    held = memory | {"backbone_optimizer": 2 * memory["backbone_optimizer"]}
                rows = largest_num_classes(per_class, held, between, usable_bytes(device))
                largest[num_ranks] = rows * num_ranks
            yield Capacity(f"{state}, {statistic}", sum(per_class.values()), largest)


def _changed(
    config: Config, optimizer: str, dtypes: Sequence[str], margin: dict[str, str]
) -> Config:
    """dtypes: of the centres and of the momentum."""
    centres, momentum = dtypes
    scale = {key: config.margin[key] for key in ("scale",) if key in config.margin}
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, name=optimizer, implementation="torch"),
        head=dataclasses.replace(config.head, centre_dtype=centres, momentum_dtype=momentum),
        margin=margin | scale,
    )
