"""What a job will need, before it runs: memory, traffic and time of one rank, and what fits."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from kappaface_dist.backbones.counting import Cost, count_cost
from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config
from kappaface_dist.planning.backbone_memory import normalised_channels
from kappaface_dist.planning.between_steps import operation_bytes
from kappaface_dist.planning.collectives import PlannedCall, plan_collectives
from kappaface_dist.planning.host_memory import HostMemory, host_memory
from kappaface_dist.planning.job_size import JobSize
from kappaface_dist.planning.memory import memory_items, state_per_class
from kappaface_dist.planning.step_time import Device, step_seconds
from kappaface_dist.planning.teacher import teacher_flops
from kappaface_dist.training.build import new_network

# What the driver, NCCL's buffers, cuDNN's workspaces and the allocator's gaps leave of the memory.
USABLE_SHARE = 0.92


# Items that a step takes for a while, and that other operations find free.
OF_A_STEP = (
    *("images", "activations", "backward_workspace", "optimizer_workspace"),
    *("logit_cache", "head_buffers"),
)


@dataclass(frozen=True)
class Plan:
    """Bytes and seconds of one rank (the one with most classes), by item.

    Attributes:
        operation_bytes: that operations other than a step take beside what stays.
        host: of the node's own memory.
    """

    memory_bytes: dict[str, int]
    collectives: list[PlannedCall]
    step_seconds: dict[str, float]
    operation_bytes: dict[str, int]
    host: HostMemory
    usable_bytes: int
    largest_num_classes: int
    images_per_second: float
    seconds_in_all: float

    @property
    def total_memory_bytes(self) -> int:
        return largest_at_a_time(self.memory_bytes, self.operation_bytes)

    @property
    def fits(self) -> bool:
        return self.total_memory_bytes <= self.usable_bytes

    @property
    def collective_bytes(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for call in self.collectives:
            total[call.item] = total.get(call.item, 0) + call.num_bytes
        return total


def largest_at_a_time(memory: dict[str, int], operations: dict[str, int]) -> int:
    """Most bytes at a time: in a step, unless another operation takes more than one does."""
    step = sum(memory[item] for item in OF_A_STEP)
    return sum(memory.values()) + max(0, max(operations.values()) - step)


def network_cost(config: Config) -> Cost:
    """Parameters and operations of the configuration's backbone."""
    section = config.backbone
    return count_cost(
        section.name,
        embedding_size=section.embedding_size,
        image_size=config.data.image_size,
        depths=section.depths,
        widths=section.widths,
        mask_ratio=section.mask_ratio,
    )


def make_plan(config: Config, size: JobSize, device: Device) -> Plan:
    """Plan a job; call it inside `pretend_ranks(size.num_ranks)`."""
    memory = memory_items(config, size, device.kind)
    operations = operation_bytes(config, size)
    cost = network_cost(config)
    calls = planned_calls(config, size.num_ranks)
    seconds = step_seconds(config, size, device, cost, memory, calls, teacher_flops(config))
    usable = usable_bytes(device)
    between = max(operations.values()) / size.classes_per_rank
    largest = largest_num_classes(state_per_class(config, size), memory, between, usable)
    global_batch = config.data.batch_size * size.num_ranks * config.optimizer.accumulate
    speed = global_batch / sum(seconds.values())
    if config.run.steps is not None:
        total_images = config.run.steps * global_batch
    else:
        total_images = int((config.run.epochs or 0) * size.num_images)
    return Plan(
        memory_bytes=memory,
        operation_bytes=operations,
        host=host_memory(config, size, device.kind),
        collectives=calls,
        step_seconds=seconds,
        usable_bytes=usable,
        largest_num_classes=largest * size.num_ranks,
        images_per_second=speed,
        seconds_in_all=total_images / speed,
    )


def planned_calls(config: Config, num_ranks: int) -> list[PlannedCall]:
    """The collectives of a step, for the parameters of the configuration's backbone."""
    with FakeTensorMode():
        trained = [p.numel() for p in new_network(config).parameters() if p.requires_grad]
    synced = normalised_channels(config) if config.backbone.sync_batchnorm else ((), ())
    return plan_collectives(config, num_ranks, trained, synced)


def usable_bytes(device: Device) -> int:
    return int(device.memory_bytes * USABLE_SHARE)


def largest_num_classes(
    per_class: dict[str, float], memory: dict[str, int], between: float, usable: int
) -> int:
    """Classes of a rank whose state fits beside what does not depend on them, in a step and in the
    operations between the steps.

    Args:
        per_class: bytes of state, by item.
        memory: all items of a rank.
        between: bytes for each class that such an operation takes.
    """
    state = sum(per_class.values())
    held = sum(value for name, value in memory.items() if name not in per_class)
    held_between = held - sum(memory[item] for item in OF_A_STEP)
    return max(int(min((usable - held) / state, (usable - held_between) / (state + between))), 0)


def remedies(config: Config, size: JobSize, device: Device) -> list[tuple[str, int]]:
    """Settings that would save memory, the most effective first: (key=value ..., total bytes).

    Each is planned, not guessed; those that save less than 2 % are left out.
    """

    def changed(section: str, **values: Any) -> Config:
        part = dataclasses.replace(getattr(config, section), **values)
        return dataclasses.replace(config, **{section: part})

    # Several datasets have a margin each, and may have no image of half a batch.
    several = "" not in datasets(config)
    half = 0 if several else config.data.batch_size // 2
    candidates = {"backbone.checkpointing=true": changed("backbone", checkpointing=True)}
    if half:
        both = dataclasses.replace(config.optimizer, accumulate=2 * config.optimizer.accumulate)
        smaller = dataclasses.replace(changed("data", batch_size=half), optimizer=both)
        text = f"data.batch_size={half} optimizer.accumulate={both.accumulate}"
        if config.backbone.static_graph:
            text += " backbone.static_graph=false"
        candidates[text] = smaller
    if config.precision == "fp32":
        candidates["precision=bf16"] = dataclasses.replace(config, precision="bf16")
    if config.optimizer.name == "sgd":
        candidates["head.momentum_dtype=bf16"] = changed("head", momentum_dtype="bf16")
        for dtype in ("bf16", "none"):
            text = f"head.centre_dtype=bf16 head.momentum_dtype={dtype}"
            candidates[text] = changed("head", centre_dtype="bf16", momentum_dtype=dtype)
    else:
        candidates["optimizer.name=sgd"] = changed("optimizer", name="sgd")
    if config.head.sub_centres > 1:
        candidates["head.sub_centres=1"] = changed("head", sub_centres=1)
    if config.head.logit_cache_bytes:
        candidates["head.logit_cache_bytes=0"] = changed("head", logit_cache_bytes=0)
    if config.margin.get("name") == "kappaface" and not several:
        # What the other statistic cannot be combined with goes back to the default.
        lighter = {"source": "batch"} if config.margin.get("source", "batch") != "batch" else {}
        if lighter:
            candidates["margin.source=batch"] = dataclasses.replace(
                config, margin=config.margin | lighter
            )
        sums = {"statistic": "resultant", "statistic_dtype": "fp32"}
        sums |= {key: config.margin[key] for key in sums if key in config.margin}
        if sums == {"statistic": "resultant", "statistic_dtype": "fp32"}:
            candidates["margin.statistic_dtype=bf16"] = dataclasses.replace(
                config, margin=config.margin | {"statistic_dtype": "bf16"}
            )
        if sums["statistic_dtype"] != "fp32":
            lighter["statistic_dtype"] = "fp32"
        if config.margin.get("estimator") in ("released", "empirical_bayes"):
            lighter["estimator"] = "unbiased"
        cosine = {"statistic": "target_cosine", **lighter}
        text = " ".join(f"margin.{key}={value}" for key, value in cosine.items())
        candidates[text] = dataclasses.replace(config, margin=config.margin | cosine)
        scale = {key: config.margin[key] for key in ("scale",) if key in config.margin}
        text = " ".join(["margin.name=arcface", *(f"margin.scale={v}" for v in scale.values())])
        candidates[text] = dataclasses.replace(config, margin={"name": "arcface"} | scale)
    now = sum(memory_items(config, size, device.kind).values())
    totals = {
        text: sum(memory_items(other, size, device.kind).values())
        for text, other in candidates.items()
    }
    return sorted(
        ((text, total) for text, total in totals.items() if total < 0.98 * now),
        key=lambda found: found[1],
    )
