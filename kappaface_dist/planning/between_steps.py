"""Bytes that one rank takes between the steps, beside what stays.

Vectors of K numbers, and what they are while they are computed: measured on heads of few classes.
What goes over the centres themselves takes some rows at a time (`operations.py` looks).
Shapes: K classes of this shard.
"""

import dataclasses

import torch

from kappaface_dist.config.keys import Config
from kappaface_dist.planning.head_buffers import without_kernels
from kappaface_dist.planning.job_size import JobSize, jobs_of
from kappaface_dist.planning.made_up_job import made_up_head
from kappaface_dist.planning.memory_meter import MemoryMeter

FEW, MORE = 4096, 8192
# Small, so that rows which are on their way do not hide the vectors.
EMBEDDING_SIZE = 8


def operation_bytes(config: Config, size: JobSize) -> dict[str, int]:
    """Most bytes by operation; call it inside `pretend_group.pretend_ranks`."""
    found: dict[str, int] = {}
    for own, own_size in jobs_of(config, size):  # one after another
        few, more = (_peaks(own, count * size.num_ranks) for count in (FEW, MORE))
        for name in few:
            slope = (more[name] - few[name]) / (MORE - FEW)
            found[name] = max(found.get(name, 0), round(slope * own_size.classes_per_rank))
        held = _bytes_of_images(own, own.data.batch_size * size.num_ranks)
        found["epoch's end"] = max(found["epoch's end"], held)
    return found


def _bytes_of_images(config: Config, num_images: int) -> int:
    """What it takes to show the statistics a micro-batch that was read of the next epoch."""
    head = made_up_head(without_kernels(config), FEW, torch.device("cpu"))
    shown = head.class_margins
    if shown.statistics is None or not shown.sees_batches:
        return 0

    def peak(number: int) -> int:
        embedding_GD = torch.zeros(number, config.backbone.embedding_size)
        none_G = torch.zeros(number, dtype=torch.int64)
        marks = shown.marks(none_G, None, none_G, learning=True)
        with MemoryMeter() as meter:
            shown.see(embedding_GD, embedding_GD[:, 0], none_G, none_G == 0, marks)
        shown.start_step()
        return meter.peak_bytes

    if num_images <= MORE:
        return peak(num_images)
    # Of hundreds of ranks too many to be made here: on the line through fewer.
    few, more = peak(FEW), peak(MORE)
    return more + (more - few) * (num_images - MORE) // (MORE - FEW)


def _peaks(config: Config, num_classes: int) -> dict[str, int]:
    backbone = dataclasses.replace(config.backbone, embedding_size=EMBEDDING_SIZE)
    config = dataclasses.replace(config, backbone=backbone)
    head = made_up_head(without_kernels(config), num_classes, torch.device("cpu"))
    if (statistics := head.class_margins.statistics) is not None:
        statistics.kappa_K.fill_(50.0)  # every class has been measured
        statistics.epoch_weights = (0.0, 1.0)  # and images of the present epoch were seen
    peaks = {}
    functions = {"log line": head.summary, "epoch's end": head.end_epoch}
    if config.margin.get("refresh_steps"):
        functions["a window's end"] = head.refresh
    for name, function in functions.items():
        with MemoryMeter() as meter:
            function()
        peaks[name] = meter.peak_bytes
    return peaks
