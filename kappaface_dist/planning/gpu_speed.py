"""How fast a machine is, and what it takes, beside the plan: figures for the first run on it.

Each check takes a `gpu_check.Machine` and returns what it found in words with its figures.
"""

import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from kappaface_dist.config.keys import Backbone, Config, Data
from kappaface_dist.config.keys import Head as HeadSection
from kappaface_dist.head import ArcFace, PartialFC
from kappaface_dist.head.softmax.measured import MEASURED_IMAGES, keep, key_of
from kappaface_dist.head.softmax.settings import Softmax
from kappaface_dist.head.softmax.tiles import why_not
from kappaface_dist.planning.gpu_check import Failed, Found, Machine
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
# What backbone.compile can be, by name; the compilation of r50 takes about so many seconds until
# this machine's are known, and that of r100 times as long.
COMPILED: dict[str, bool | str] = {"compiled": True, "CUDA graphs": "reduce-overhead"}
COMPILATION_SECONDS, LARGER = 60.0, 2.2


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
    return words, {"picoseconds_per_logit": picoseconds, "step_seconds": seconds}


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
    """Images per second of r50 and r100: eager, and compiled as far as there is time for it."""
    names = ("tiny",) if machine.quick else ("r50", "r100")
    runs: list[tuple[str, str, bool | str]] = [(name, "eager", False) for name in names]
    if machine.device.type == "cuda":
        runs += [(name, mode, how) for name in names for mode, how in COMPILED.items()]
    found: dict[str, float] = {}
    left_out: list[str] = []
    failed: list[str] = []
    tracebacks: dict[str, str] = {}
    seconds: dict[str, float] = {}  # of a network's last compilation
    for name, mode, how in runs:
        run = f"{name} {mode}"
        known = LARGER * max(seconds.values()) if seconds else COMPILATION_SECONDS
        if how and time.monotonic() + seconds.get(name, known) > machine.deadline:
            left_out.append(f"{run} (would take longer than --minutes)")
            continue
        started = time.monotonic()
        try:
            found[run] = images_per_second(machine, name, how)
        except torch.OutOfMemoryError:
            left_out.append(f"{run} (does not fit)")
        except Exception as error:  # noqa: BLE001 - the other runs are wanted all the same
            failed.append(f"{run}: {str(error) or type(error).__name__}")
            # In words: the error itself would keep what its functions had on the GPU.
            tracebacks[run] = traceback.format_exc()
        forget(machine.device)
        if how:
            seconds[name] = time.monotonic() - started
    words = "images per second: " + ", ".join(f"{run} {n:.0f}" for run, n in found.items())
    if left_out:
        words += f"; left out: {', '.join(left_out)}"
    figures = {"images_per_second": found, "left_out": left_out}
    if failed:
        raise Failed("; ".join([*failed, words]), {**figures, "tracebacks": tracebacks})
    return words, figures


def images_per_second(machine: Machine, name: str, compiled: bool | str) -> float:
    """Of a whole step of one network, with 1000 classes."""
    config = job_config(machine, name, compile=compiled)
    side = measure({name: (config, 1000)}, machine.device, 2 if machine.quick else 10)[name]
    return side.job.global_batch / statistics.median(side.seconds)


def forget(device: torch.device) -> None:
    """Leave the next network all of the memory."""
    gc.collect()
    if device.type == "cuda":
        torch.compiler.reset()
        torch.cuda.empty_cache()


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
    words = f"{total / 1e6:.0f} MB taken, {expected / 1e6:.0f} MB planned ({off:+.1%})"
    if not abs(off) < MEMORY_TOLERANCE:
        by_item = ", ".join(
            f"{name} {taken / 1e6:.0f} for {planned[name] / 1e6:.0f}"
            for name, taken in measured.items()
        )
        raise Failed(f"{words}: {by_item}", figures)
    return words, figures


# Before anything is trained: the threads of a loader beside it, and an H100 waits twice as long for
# the head's launches.
HEAD_SPEEDS: dict[str, Callable[[Machine], Found]] = {
    "head's speed": head_speed,
    "head's kernels": head_kernels,
}
SPEEDS: dict[str, Callable[[Machine], Found]] = {
    "data": data_share,
    "memory": memory_against_plan,
    "networks' speed": network_speed,  # last: it takes the time that is left
}
