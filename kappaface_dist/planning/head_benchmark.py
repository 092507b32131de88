"""Time and memory of PartialFC beside other heads, measured in one run.

Shapes: B images on this rank, G images on all ranks, D embedding size, C all classes, K classes of
this shard.
"""

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from kappaface_dist.head.heads import Heads
from kappaface_dist.head.partial_fc import PartialFC
from kappaface_dist.head.shard import initial_centres
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.planning.dense_head import LR


class HeadSide(Protocol):
    """A head under measurement: one call is forward, backward and step."""

    def train_step(self, embedding_BD: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor: ...

    def state(self) -> list[torch.Tensor]: ...

    def numbers(self) -> dict[str, float]:
        """What else there is to report; collective."""


class StreamingSide:
    """PartialFC."""

    def __init__(self, head: PartialFC):
        self.head = head

    def train_step(self, embedding_BD: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        # A memory wants to know which of its class's images each is: the first.
        loss = self.head(embedding_BD, label_B, slot_B=torch.zeros_like(label_B))
        loss.backward()
        self.head.step(LR)
        return loss.detach()

    def state(self) -> list[torch.Tensor]:
        return [self.head.weight_KD, *self.head.row_state.values()]

    def numbers(self) -> dict[str, float]:
        return {k: v for k, v in self.head.summary().items() if k.startswith("skipped")}


class SeveralSide:
    """Heads of as many classes each, which share the images of a rank."""

    def __init__(self, heads: list[PartialFC], num_images: int):
        by_name = {str(number): head for number, head in enumerate(heads)}
        counts = [num_images // len(heads)] * len(heads)
        self.heads = Heads(by_name, counts, [1.0] * len(heads))
        self.num_classes = heads[0].num_classes

    def train_step(self, embedding_BD: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        loss = self.heads(embedding_BD, label_B % self.num_classes)
        loss.backward()
        self.heads.step(LR)
        return loss.detach()

    def state(self) -> list[torch.Tensor]:
        each = self.heads.by_name.values()
        return [t for head in each for t in (head.weight_KD, *head.row_state.values())]

    def numbers(self) -> dict[str, float]:
        return {}


class RandomBatch:
    """Random images of this rank, the same for every side.

    Args:
        near: around the first centres of their classes, from on top to far away, as images are in
            training; otherwise anywhere.
    """

    def __init__(
        self, num_classes: int, num_images: int, size: int, device: torch.device, near: bool = False
    ):
        generator = torch.Generator().manual_seed(parallel.rank())
        label_B = torch.randint(num_classes, (num_images,), generator=generator)
        embedding_BD = torch.randn(num_images, size, generator=generator)
        if near:
            centres = [
                initial_centres(range(label, label + 1), size, 0, torch.float32, label_B.device)
                for label in label_B.tolist()
            ]
            distance_B1 = 2.5 * torch.rand(num_images, 1, generator=generator) / math.sqrt(size)
            embedding_BD = F.normalize(torch.cat(centres)) + distance_B1 * embedding_BD
        self.label_B, self.embedding_BD = label_B.to(device), embedding_BD.to(device)

    def run(self, side: HeadSide) -> torch.Tensor:
        return side.train_step(self.embedding_BD.clone().requires_grad_(), self.label_B)


def seconds_per_step(
    sides: dict[str, HeadSide], batch: RandomBatch, num_repeats: int
) -> dict[str, tuple[list[float], list[float], list[float]]]:
    """(seconds, processor seconds, seconds to launch) of each step; the slowest rank's.

    The sides take turns. The processor's seconds, over all threads, are the steadier where others
    use the machine too. Launched is what a GPU has yet to do: near the seconds, launches show.
    """
    device = batch.label_B.device
    times: dict[str, tuple[list[float], list[float], list[float]]]
    times = {name: ([], [], []) for name in sides}
    for repeat in range(num_repeats + 1):
        for name, side in sides.items():
            parallel.barrier()
            _wait(device)
            start, busy_start = time.perf_counter(), time.process_time()
            batch.run(side)
            launched = time.perf_counter() - start
            _wait(device)
            own = [time.perf_counter() - start, time.process_time() - busy_start, launched]
            slowest = parallel.all_reduce_max(torch.tensor(own, dtype=torch.float64, device=device))
            if repeat:  # the first round warms up
                for values, value in zip(times[name], slowest.tolist(), strict=True):
                    values.append(value)
    return times


def extra_bytes(
    build: Callable[[], HeadSide], batch: RandomBatch, num_steps: int = 2
) -> tuple[HeadSide, int]:
    """A new side, and its peak bytes on this rank beyond its state over a few steps, measured.

    On the CPU the peak is the process's own (VmHWM, which Linux lets one reset), less what it held
    before the head was built; on a GPU that of torch's allocator.

    Raises:
        RuntimeError: the system does not report the peak.
    """
    gc.collect()
    device = batch.label_B.device
    before = _held_bytes(device)
    side = build()
    _reset_peak(device)
    for _ in range(num_steps):
        batch.run(side)
    _wait(device)
    return side, _peak_bytes(device) - before - state_bytes(side)


def state_bytes(side: HeadSide) -> int:
    return sum(t.untyped_storage().nbytes() for t in side.state())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status(field: str) -> int:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return int(text.split(f"{field}:")[1].split()[0]) * 1024
    except (OSError, IndexError) as error:
        raise RuntimeError(
            f"the process's memory ({field}) cannot be read from /proc/self/status: measure memory"
            " on Linux, or on a GPU"
        ) from error


def _held_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    # Freed memory that the C library keeps would hide as much of the peak.
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def measure_heads(
    builders: Mapping[str, Callable[[], HeadSide]],
    batch: RandomBatch,
    *,
    num_logits: int,
    num_parameters: int,
    num_repeats: int,
) -> dict[str, dict[str, Any]]:
    """Memory of one side after another, then the times of all, taking turns.

    Args:
        builders: by name, what makes a side.
        num_logits: of one step on one rank, G·K; all of them, also where only some are sampled.
        num_parameters: of this rank's centres, K·D.
        num_repeats: timed steps of each side.
    """
    report: dict[str, dict[str, Any]] = {}
    sides: dict[str, HeadSide] = {}
    for name, build in builders.items():
        sides[name], extra = extra_bytes(build, batch)
        report[name] = {
            "extra_bytes": extra,
            "extra_bytes_per_logit": extra / num_logits,
            "state_bytes_per_parameter": state_bytes(sides[name]) / num_parameters,
        }
    for name, (seconds, busy, launched) in seconds_per_step(sides, batch, num_repeats).items():
        median = statistics.median(seconds)
        report[name] |= {
            "seconds": median,
            "seconds_min": min(seconds),
            "seconds_each": seconds,
            "processor_seconds": statistics.median(busy),
            "launch_seconds": statistics.median(launched),
            "ps_per_logit": median * 1e12 / num_logits,
            **sides[name].numbers(),
        }
    return report
