"""Rates of a machine: measured beside a benchmark of the step, and read for a plan.

Shapes: B images of a micro-batch on this rank, G on all N ranks, K rows of this rank in use, D
embedding size.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kappaface_dist.backbones.counting import Cost
from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config
from kappaface_dist.head.heads import heads_by_name
from kappaface_dist.head.sampling import sample_size
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.planning.collectives import head_calls
from kappaface_dist.planning.head_benchmark import RandomBatch, StreamingSide, seconds_per_step
from kappaface_dist.planning.made_up_job import made_up_head
from kappaface_dist.planning.step_benchmark import Side, part_seconds
from kappaface_dist.planning.step_time import (
    DEVICES,
    RANKS_PER_NODE,
    Device,
    backbone_repeats,
    call_seconds,
    head_flops,
    head_work,
)

# Rows of a rank: so few that only what does not depend on them costs time, and enough for a rate.
FEW_ROWS, MANY_ROWS = 128, 16384
NUM_REPEATS = 7
EXCHANGED_BYTES = 32 << 20
# What a report of benchmark_head.py holds, among others.
SIZES = ("classes", "ranks", "batch", "embedding", "sample_rate", "logit_cache_bytes")
HEAD_REPORT = {*SIZES, "streaming"}


def calibrated(device: Device, paths: list[str], backbone: str) -> Device:
    """The device with the rates in the reports of benchmark_step.py or benchmark_head.py.

    Raises:
        ValueError: a file is no such report, or one of another backbone: small and large networks
            differ by a factor in what they make of the same device.
    """
    known = {field.name for field in fields(Device)} - {"kind"}
    for path in paths:
        try:
            report = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"calibration {path} cannot be read: {error}") from error
        report = report if isinstance(report, dict) else {}
        rates = report.get("calibration")
        if report.keys() >= HEAD_REPORT:
            rates = _head_report_rates(report)
        if not isinstance(rates, dict) or not rates or not set(rates) <= known:
            raise ValueError(
                f"calibration {path} holds no rates, expected a JSON report of benchmark_step.py"
                " or benchmark_head.py"
            )
        if report.get("backbone", backbone) != backbone:
            raise ValueError(
                f"calibration {path} was measured with {report['backbone']}, and backbone.name is"
                f" {backbone}: run benchmark_step.py with this configuration"
            )
        for name, rate in rates.items():
            if not isinstance(rate, int | float) or not rate >= 0:
                raise ValueError(f"calibration {path}: {name} is {rate}, expected a rate above 0")
        device = replace(device, **rates)
    return device


def _head_report_rates(report: dict[str, Any]) -> dict[str, float]:
    """Of benchmark_head.py, which measures one size: all of its time counts as products."""
    rows = -(-report["classes"] // report["ranks"])
    used = sample_size(rows, report["sample_rate"], report["batch"])
    flops = head_flops(report["batch"], used, report["embedding"], report["logit_cache_bytes"])
    return {"head_flops": flops / report["streaming"]["seconds"], "head_bytes": math.inf}


def measured_rates(side: Side, cost: Cost) -> dict[str, float]:
    """Rates for `calibrated`, of a job that has been measured; collective."""
    job, config, parts = side.job, side.job.config, part_seconds(side)
    seconds = parts["backbone_forward"] + parts["backward"] + parts.get("encoder", 0.0)
    images = config.data.batch_size * config.optimizer.accumulate
    work = images * cost.training_flops * backbone_repeats(config)
    trained = [p for p in job.network.parameters() if p.requires_grad]
    gradient_bytes = sum(p.numel() * p.element_size() for p in trained)
    rates = {
        "backbone_flops": work / seconds,
        "optimizer_bytes": 5 * gradient_bytes / parts["optimizer"],
        **link_rates(side.device),
    }
    links = replace(DEVICES["cpu"], **rates)  # type: ignore[arg-type]
    # Of several heads the one with most images stands for all.
    owns = datasets(config)
    name = max(owns, key=lambda one: owns[one].data.batch_size)
    head = StreamingSide(heads_by_name(job.head)[name])
    return rates | head_rates(owns[name], head, links, side.device)


def link_rates(device: torch.device) -> dict[str, float]:
    """Latency of a collective, and bytes per second between the ranks; nothing of one rank."""
    num_ranks = parallel.world_size()
    if num_ranks == 1:
        return {}
    small, large = torch.zeros(1, device=device), torch.zeros(EXCHANGED_BYTES // 4, device=device)
    latency = median_seconds(lambda: parallel.all_reduce_sum(small), device)
    seconds = median_seconds(lambda: parallel.all_reduce_sum(large), device)
    moved = EXCHANGED_BYTES * 2 * (num_ranks - 1) / num_ranks
    link = "node_bytes" if num_ranks <= RANKS_PER_NODE else "network_bytes"
    return {"collective_seconds": latency, link: moved / max(seconds - latency, 1e-9)}


def median_seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Of a few calls after a first one; the slowest rank's."""
    seconds = []
    for _ in range(NUM_REPEATS + 1):
        parallel.barrier()
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        own = torch.tensor([time.perf_counter() - started], dtype=torch.float64, device=device)
        seconds.append(parallel.all_reduce_max(own).item())
    return statistics.median(seconds[1:])


def head_rates(
    config: Config, own: StreamingSide, rates: Device, device: torch.device
) -> dict[str, float]:
    """What a micro-batch costs the head at all, by product and by byte of its rows' state.

    From heads of few and of many rows with the whole batch and a quarter of it: a rate measured at
    one size says little about another.

    Args:
        own: the head of the job, which serves as the one of many rows where it has so many.
        rates: with those of the collectives, which are not the head's own.
    """
    num_ranks = parallel.world_size()
    few = StreamingSide(made_up_head(config, FEW_ROWS * num_ranks, device))
    many = own
    if own.head.num_classes < MANY_ROWS * num_ranks:  # shards differ by a row: all decide alike
        many = StreamingSide(made_up_head(config, MANY_ROWS * num_ranks, device))
    cached = config.optimizer.accumulate if config.optimizer.cache_embeddings else 1
    images, size = config.data.batch_size * cached, config.backbone.embedding_size

    def cost(side: StreamingSide, seconds: list[float], num_images: int) -> np.ndarray:
        rows = -(-side.head.num_classes // num_ranks)
        rows = sample_size(rows, config.head.largest_sample_rate, num_images)
        rows *= config.head.sub_centres
        return np.array(
            [statistics.median(seconds), *head_work(config, num_images, rows, device.type)]
        )

    differences = []
    for num_images in (max(images // 4, 1), images):
        batch = RandomBatch(FEW_ROWS * num_ranks, num_images, size, device)
        found = seconds_per_step({"few": few, "many": many}, batch, NUM_REPEATS)
        least = cost(few, found["few"][0], num_images * num_ranks)
        differences.append(cost(many, found["many"][0], num_images * num_ranks) - least)
    per_flop, per_byte = _slopes(*differences)
    exchange = sum(call_seconds(c, num_ranks, rates) for c in head_calls(config, num_ranks))
    fixed = float(least[0] - least[1] * per_flop - least[2] * per_byte) - exchange
    return {
        "head_flops": 1 / per_flop,
        "head_bytes": 1 / max(per_byte, 1e-18),
        "head_fixed_seconds": max(fixed, 0.0),
    }


def _slopes(part: np.ndarray, whole: np.ndarray) -> tuple[float, float]:
    """(seconds per operation, per byte) from (seconds, operations, bytes) of two batches."""
    work = np.stack([part, whole])
    if np.linalg.matrix_rank(work[:, 1:]) == 2:
        per_flop, per_byte = np.linalg.solve(work[:, 1:], work[:, 0])
        if per_flop > 0 and per_byte > 0:
            return float(per_flop), float(per_byte)
    # The noise is larger than one of them: all is products.
    return max(float(whole[0]), 1e-9) / float(whole[1]), 0.0
