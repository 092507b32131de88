"""How fast a machine is, and what it takes, beside the plan: figures for the first run on it.

Each check takes a `gpu_check.Machine` and returns what it found in words with its figures.
"""

import json
import statistics
from collections.abc import Callable
from typing import Any

import torch

from kappaface_dist.config.keys import Backbone, Config, Data
from kappaface_dist.config.keys import Head as HeadSection
from kappaface_dist.head import ArcFace, PartialFC
from kappaface_dist.head.softmax.measured import MEASURED_IMAGES, keep, key_of
from kappaface_dist.head.softmax.settings import Softmax
from kappaface_dist.head.softmax.tiles import why_not
from kappaface_dist.planning.gpu_check import Found, Machine
from kappaface_dist.planning.head_benchmark import (
    HeadSide,
    RandomBatch,
    StreamingSide,
    seconds_per_step,
)
from kappaface_dist.planning.memory import JobSize, memory_items
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.planning.rehearsal import rehearse
from kappaface_dist.planning.step_benchmark import measure

# A plan that is off by more of all it counts would mislead whoever buys memory by it.
MEMORY_TOLERANCE = 0.1


def job_config(machine: Machine, name: str, **backbone: Any) -> Config:
    """A step as configs/glint360k.yaml has it, of that network; quick: the smallest."""
    size, images = (32, 4) if machine.quick else (112, 128)
    return Config(
        data=Data(train="none", batch_size=images, image_size=size),
        backbone=Backbone(name=name, channels_last=True, **backbone),
        head=HeadSection(dtype="bf16"),
        precision="bf16",
    )


def head_speed(machine: Machine) -> Found:
    """Picoseconds per logit of the head's whole step."""
    num_classes, num_images = (5_000, 32) if machine.quick else (360_000, 1024)
    head = PartialFC(num_classes, 512, ArcFace(), dtype=torch.bfloat16, device=machine.device)
    batch = RandomBatch(num_classes, num_images, 512, machine.device)
    times = seconds_per_step({"ours": StreamingSide(head)}, batch, 3 if machine.quick else 20)
    seconds = statistics.median(times["ours"][0])
    picoseconds = seconds / (num_classes * num_images) * 1e12
    words = f"{picoseconds:.3g} ps per logit, {num_classes} classes and {num_images} images"
    return words, {"picoseconds_per_logit": picoseconds, "seconds": seconds}


def head_kernels(machine: Machine) -> Found:
    """Which of the head's kernels are the faster, kept for `head.fused: auto` of this user."""
    rows, repeats = (2_000, 1) if machine.quick else (262_144, 5)
    why = why_not(Softmax(scale=64.0, dtype=torch.bfloat16), machine.device, 512)
    if why is not None:
        return f"nothing to choose: {why.split(':')[0]}", {}
    found: dict[str, dict[str, float]] = {}
    for num_images in MEASURED_IMAGES[:1] if machine.quick else MEASURED_IMAGES:
        sides: dict[str, HeadSide] = {
            name: StreamingSide(
                PartialFC(
                    rows, 512, ArcFace(), dtype=torch.bfloat16, fused=name, device=machine.device
                )
            )
            for name in ("tiles", "chunks")
        }
        batch = RandomBatch(rows, num_images, 512, machine.device)
        times = seconds_per_step(sides, batch, repeats)
        key = key_of(machine.device, 512, num_images)
        found[key] = {name: statistics.median(of_name[0]) for name, of_name in times.items()}
    words = "; ".join(
        f"{min(times, key=lambda name: times[name])} by"
        f" {max(times.values()) / min(times.values()):.2f} ({key.rsplit(', ', 1)[1]})"
        for key, times in found.items()
    )
    if machine.quick:
        return f"{words}; not kept, as a trial", found
    return f"{words}; kept in {keep(found)}", found


def network_speed(machine: Machine) -> Found:
    """Images per second of r50 and r100: eager, compiled, as CUDA graphs."""
    modes: dict[str, Any] = {"eager": False}
    if machine.device.type == "cuda":
        modes |= {"compiled": True, "CUDA graphs": "reduce-overhead"}
    found: dict[str, float] = {}
    for name in ("tiny",) if machine.quick else ("r50", "r100"):
        for mode, compiled in modes.items():
            config = job_config(machine, name, compile=compiled)
            side = measure({mode: (config, 1000)}, machine.device, 2 if machine.quick else 10)[mode]
            seconds = statistics.median(side.seconds)
            found[f"{name} {mode}"] = side.job.global_batch / seconds
    words = ", ".join(f"{name} {speed:.0f}" for name, speed in found.items())
    return f"images per second: {words}", {"images_per_second": found}


def data_share(machine: Machine) -> Found:
    """Share of the time that a short training waited for its data."""
    path = machine.folder / "whole" / "metrics.jsonl"
    if not path.is_file():
        raise RuntimeError("there is no training to look at: `kill and resume` did not end")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    shares = [line["data_wait_share"] for line in lines if "data_wait_share" in line]
    share = statistics.median(shares[len(shares) // 2 :])
    return f"{share:.1%} of the time of a short training of the smallest network", {"share": share}


def memory_against_plan(machine: Machine) -> Found:
    """All bytes of one rank, measured and planned."""
    config = job_config(machine, "tiny" if machine.quick else "r50")
    size = JobSize(5_000 if machine.quick else 360_000, 10**6, 1)
    with pretend_ranks(1):
        measured = rehearse(config, size, machine.device)["memory_bytes"]
        planned = memory_items(config, size, machine.device.type)
    total, expected = sum(measured.values()), sum(planned[name] for name in measured)
    off = expected / total - 1.0
    figures = {"measured": measured, "planned": {name: planned[name] for name in measured}}
    assert abs(off) < MEMORY_TOLERANCE, (
        f"planned are {expected / 1e6:.0f} MB and taken {total / 1e6:.0f} MB: {figures}"
    )
    return f"{total / 1e6:.0f} MB taken, {expected / 1e6:.0f} MB planned ({off:+.1%})", figures


SPEEDS: dict[str, Callable[[Machine], Found]] = {
    "head's speed": head_speed,
    "head's kernels": head_kernels,
    "networks' speed": network_speed,
    "data": data_share,
    "memory": memory_against_plan,
}
