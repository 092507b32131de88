"""Seconds of a step by item, from rates of the device or from measured ones.

A rough model, not a measurement: sums of work over rate. Give plan.py a calibration file that
benchmark_step.py wrote for the same network on such a machine, for numbers to rely on.
Shapes: B images of a micro-batch on this rank, G on all N ranks, K rows of this rank in use, D
embedding size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kappaface_dist.backbones.counting import Cost
from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config
from kappaface_dist.planning.collectives import PlannedCall
from kappaface_dist.planning.head_buffers import micro_batch_images, used_rows
from kappaface_dist.planning.job_size import JobSize, jobs_of

GIGA, TERA = 1e9, 1e12
# Share of the datasheet's rate that large products reach.
PRODUCT_SHARE = 0.6
# And that convolutions in 16 bits reach, whose saved activations are written and read so often by
# the operators around them: so that r50 and r100 take 0.98 and 0.91 of what they do on an H100.
CONVOLUTION_SHARE = 0.2
PASSES_OVER_ACTIVATIONS = 9
# Share of the backward pass and of the head's second pass that DDP's exchange can hide behind; on a
# CPU both need the cores.
HIDDEN_SHARE = {"cuda": 0.6, "cpu": 0.0}
RANKS_PER_NODE = 8
# Bytes of memory traffic for each logit: of the first pass, of one that is kept, of the second pass
# where it is not. Fused kernels: fp32 written by the product, read, Q written in bf16, read by the
# next product. Plain: fp32 written; scaled, exponentiated, scaled again in place; summed; read.
# Tiles: none. Of several centres a class the nearest is found by 80 more (`sub_centres.py`).
# A CPU's chunk stays in a core's cache, but for what is kept in bf16 and read again.
LOGIT_BYTES = {
    "fused": (12, 2, 12),
    "tiles": (0, 0, 0),
    "plain": (36, 8, 36),
    "nearest": (116, 8, 116),
    "cpu": (0, 4, 0),
}


@dataclass(frozen=True)
class Device:
    """Rates of one device and of what connects it; bytes, floating-point operations, per second.

    Attributes:
        half_flops: matrix products of 16-bit operands.
        flops: of 32-bit operands.
        node_bytes: between devices of a node, each way.
        network_bytes: between nodes, for each device.
        decoded_images: that its share of the host's cores delivers.
        collective_seconds: of one that moves hardly anything.
        backbone_flops: measured for forward and backward pass; 0: by the model.
        optimizer_bytes: measured for gradients, parameters and state; 0: by the model.
        head_flops, head_bytes: measured for its products, for its rows' state; 0: by the model.
        head_fixed_seconds: of a micro-batch, whatever the number of classes.
        kind: cpu or cuda, for the sizes of the head's chunks.
    """

    memory_bytes: float
    half_flops: float
    flops: float
    memory_bandwidth: float
    node_bytes: float
    network_bytes: float
    decoded_images: float = 8000.0
    collective_seconds: float = 20e-6
    backbone_flops: float = 0.0
    optimizer_bytes: float = 0.0
    head_flops: float = 0.0
    head_bytes: float = 0.0
    head_fixed_seconds: float = 0.0
    kind: str = "cuda"


# Datasheets; dense rates. Decoding: eight cores for each device, DALI's CPU share.
DEVICES = {
    "h200": Device(141e9, 989 * TERA, 67 * TERA, 4.8 * TERA, 450 * GIGA, 50 * GIGA),
    "h100": Device(80e9, 989 * TERA, 67 * TERA, 3.35 * TERA, 450 * GIGA, 50 * GIGA),
    "a100": Device(80e9, 312 * TERA, 19.5 * TERA, 2.0 * TERA, 300 * GIGA, 25 * GIGA),
    "a100-40": Device(40e9, 312 * TERA, 19.5 * TERA, 1.55 * TERA, 300 * GIGA, 25 * GIGA),
    "v100-32": Device(32e9, 125 * TERA, 15.7 * TERA, 0.9 * TERA, 150 * GIGA, 12 * GIGA),
    "v100-16": Device(16e9, 125 * TERA, 15.7 * TERA, 0.9 * TERA, 150 * GIGA, 12 * GIGA),
    "l40s": Device(48e9, 362 * TERA, 91 * TERA, 0.86 * TERA, 25 * GIGA, 12 * GIGA),
    "rtx4090": Device(24e9, 165 * TERA, 82 * TERA, 1.0 * TERA, 25 * GIGA, 3 * GIGA),
    # One core of a server CPU with AVX-512 and its share of the memory.
    "cpu": Device(8e9, 0.10 * TERA, 0.05 * TERA, 10 * GIGA, 2 * GIGA, 1 * GIGA, 4000.0, kind="cpu"),
}


def step_seconds(
    config: Config,
    size: JobSize,
    device: Device,
    cost: Cost,
    memory: Mapping[str, int],
    calls: list[PlannedCall],
    teacher_flops: int = 0,
) -> dict[str, float]:
    """Seconds by item; communication and data only as far as nothing else hides them.

    Args:
        teacher_flops: of the teacher's forward pass for an image.
    """
    accumulate, cached = config.optimizer.accumulate, config.optimizer.cache_embeddings
    images = config.data.batch_size * accumulate
    repeats = backbone_repeats(config)
    whole = config.precision == "fp32"
    rate = PRODUCT_SHARE * device.flops if whole else CONVOLUTION_SHARE * device.half_flops
    rate = device.backbone_flops or rate
    if device.backbone_flops:
        backbone = images * cost.training_flops * repeats / rate
    else:
        products = images * cost.training_flops * repeats / rate
        traffic = memory["activations"] * accumulate * PASSES_OVER_ACTIVATIONS
        backbone = products + traffic / device.memory_bandwidth
    head = head_seconds(config, size, device) * (1 if cached else accumulate)
    # Read parameters, gradients and state, write parameters and state.
    updated = 5 * memory["backbone_gradients"]
    if not device.optimizer_bytes:
        updated += memory["optimizer_workspace"]
    communication = [call_seconds(call, size.num_ranks, device) for call in calls]
    gradient = sum(
        seconds
        for call, seconds in zip(calls, communication, strict=True)
        if call.item == "gradient_all_reduce"
    )
    # Only the last micro-batch's backward pass has an exchange to hide; in fp16 the head waits.
    second_pass = head / 2 if config.precision != "fp16" else 0.0
    beside = backbone * 2 / 3 / accumulate + second_pass
    hidden = min(gradient, HIDDEN_SHARE[device.kind] * beside)
    seconds = {
        "backbone": backbone,
        "head": head,
        "optimizer": updated / (device.optimizer_bytes or device.memory_bandwidth),
        "communication": sum(communication) - hidden,
    }
    if teacher_flops:
        seconds["teacher"] = images * teacher_flops / rate
    return seconds | {"data_wait": max(images / device.decoded_images - sum(seconds.values()), 0.0)}


def head_seconds(config: Config, size: JobSize, device: Device) -> float:
    """Both passes over the rows in use: products, and the traffic of centres and their state."""
    return sum(_one_heads_seconds(*job, device) for job in jobs_of(config, size))


def _one_heads_seconds(config: Config, size: JobSize, device: Device) -> float:
    images = micro_batch_images(config, size)
    rows = used_rows(config, size)
    flops, num_bytes = head_work(config, images, rows, device.kind)
    half = config.head.dtype == "bf16" and device.kind == "cuda"
    model = PRODUCT_SHARE * (device.half_flops if half else device.flops)
    products = flops / (device.head_flops or model)
    traffic = num_bytes / (device.head_bytes or device.memory_bandwidth)
    return products + traffic + device.head_fixed_seconds


def head_work(config: Config, num_images: int, rows: int, device_kind: str) -> tuple[float, float]:
    """(Operations of the products, bytes written and read) of both passes over so many rows."""
    size, cache_bytes = config.backbone.embedding_size, config.head.logit_cache_bytes
    kind = "cpu"
    if device_kind != "cpu":
        kind = "fused" if config.head.fused and config.head.dtype == "bf16" else "plain"
        kind = "tiles" if config.head.fused == "tiles" else kind
        kind = "nearest" if config.head.sub_centres > 1 else kind
    logits = logit_traffic(num_images, rows, cache_bytes, kind)
    return head_flops(num_images, rows, size, cache_bytes), head_traffic(rows, size) + logits


def head_flops(num_images: int, rows: int, embedding_size: int, cache_bytes: int) -> float:
    """Logits, embedding gradient, centre gradient; and the logits again where they are not kept."""
    kept = kept_share(num_images, rows, cache_bytes)
    return 2 * num_images * rows * embedding_size * (4 - kept)


def kept_share(num_images: int, rows: int, cache_bytes: int) -> float:
    """Of the logits, in bf16."""
    return min(1.0, cache_bytes / (2 * num_images * rows)) if rows else 0.0


def logit_traffic(num_images: int, rows: int, cache_bytes: int, kind: str) -> float:
    """Bytes of logits that both passes write and read; most of a GPU head's traffic."""
    kept = kept_share(num_images, rows, cache_bytes)
    first, keep, second = LOGIT_BYTES[kind]
    return num_images * rows * (first + kept * keep + (1.0 - kept) * second)


def head_traffic(rows: int, embedding_size: int) -> float:
    """Bytes of centres and momentum: read for logits, for the gradient and the update; written."""
    return 5 * 4 * rows * embedding_size


def backbone_repeats(config: Config) -> float:
    """Work of a step to that of forward and backward: a forward pass more is a third of it."""
    twice = bool(config.backbone.checkpointing) + config.optimizer.cache_embeddings
    margins = [own.margin for own in datasets(config).values()]
    twice += any(margin.get("source") == "encoder" for margin in margins)
    return 1.0 + twice / 3


def call_seconds(call: PlannedCall, num_ranks: int, device: Device) -> float:
    """A ring's time; an all-reduce goes round twice."""
    link = device.node_bytes if num_ranks <= RANKS_PER_NODE else device.network_bytes
    share = (num_ranks - 1) / num_ranks
    rounds = {"all_gather": num_ranks, "reduce_scatter": 1, "all_reduce": 2}[call.name]
    return device.collective_seconds + call.num_bytes * rounds * share / link
