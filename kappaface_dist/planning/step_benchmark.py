"""Times of training steps with different switches, taking turns in one run."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.profiler import record_function

from kappaface_dist.backbones.counting import Cost
from kappaface_dist.config.keys import Config
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.planning.made_up_job import made_up_job, random_batches
from kappaface_dist.training.data_parallel import DataParallel
from kappaface_dist.training.step import PHASES, train_step

WARM_UP_STEPS = 3
# The plain step, but the gradients are waited for after the head's second pass, as training does.
LATE_EXCHANGE = "late_exchange"
# The plain step that everyone runs: eager, one memory format, gradients exchanged in fp32 and
# waited for in the backward pass.
PLAIN = {
    "compile": False,
    "channels_last": False,
    "gradient_dtype": "fp32",
    "static_graph": False,
    "sync_batchnorm": False,
    "checkpointing": False,
}


def with_switches(config: Config, precision: str | None = None, **switches: Any) -> Config:
    """The configuration with other switches of its backbone, and another precision."""
    backbone = dataclasses.replace(config.backbone, **switches)
    return dataclasses.replace(config, backbone=backbone, precision=precision or config.precision)


def variants(config: Config, *, compiled: bool, on_gpu: bool) -> dict[str, Config]:
    """The plain step, each switch alone on top of it, and the configuration as it is."""
    plain = with_switches(config, "fp16" if on_gpu else "fp32", **PLAIN)
    found = {
        "plain": plain,
        "channels_last": with_switches(plain, channels_last=True),
        "bf16": with_switches(plain, "bf16"),
        "channels_last+bf16": with_switches(plain, "bf16", channels_last=True),
        "gradient_bf16": with_switches(plain, gradient_dtype="bf16"),
        LATE_EXCHANGE: plain,
        "checkpointing": with_switches(plain, checkpointing=True),
    }
    if on_gpu:
        found["sync_batchnorm"] = with_switches(plain, sync_batchnorm=True)
    if config.optimizer.accumulate == 1:
        found["static_graph"] = with_switches(plain, static_graph=True)
    if compiled:
        found["compile"] = with_switches(plain, compile=True)
        found["compile+channels_last+bf16"] = with_switches(
            plain, "bf16", compile=True, channels_last=True
        )
        if on_gpu:
            found["cuda_graphs+channels_last+bf16"] = with_switches(
                plain, "bf16", compile="reduce-overhead", channels_last=True
            )
    return found | {"config": config}


class Side:
    """One job under measurement, on the same random images as the others.

    Args:
        num_classes: of several datasets those of each.
        waits_first: for the exchange of gradients, before the head's second pass.
    """

    def __init__(
        self,
        config: Config,
        num_classes: int | Sequence[int],
        device: torch.device,
        waits_first: bool = False,
    ):
        self._phase: Callable[[str], AbstractContextManager]
        self._phase = self._wait_first if waits_first else record_function
        self.job = made_up_job(config, num_classes, device)
        self.batches = random_batches(config, num_classes, device)
        self.device = device
        self.position = 0
        self.seconds: list[float] = []
        self.held_bytes, self.step_bytes = 0, 0  # on a GPU: between steps, and at most beyond it
        self.parts: dict[str, list[float]] = {name: [] for name in PHASES}

    def step(self, *, timed: bool, parts: bool = False) -> None:
        """One step; with `parts` every part of it is waited for, and timed."""
        parallel.barrier()
        self._wait()
        before = allocated_bytes(self.device)
        started = time.perf_counter()
        phase = self._timed_phase if parts else self._phase
        self._parts = dict.fromkeys(PHASES, 0.0)
        train_step(self.job, self.batches, 1e-3, self.position, phase=phase)
        self._wait()
        own = torch.tensor([time.perf_counter() - started], dtype=torch.float64, device=self.device)
        self.position += self.job.global_batch
        if parts:
            for name, value in self._parts.items():
                self.parts[name].append(value)
        if timed:
            self.step_bytes = max(self.step_bytes, peak_bytes(self.device) - before)
            self.seconds.append(parallel.all_reduce_max(own).item())

    def exchange_seconds(self) -> float:
        """What a step takes longer than one whose gradients stay on their rank; both in turn."""
        if not isinstance(self.job.backbone, DataParallel):
            return 0.0
        kept, self.seconds = self.seconds, []
        for _ in range(len(kept)):
            self.step(timed=True)
            with self.without_exchange():
                self.step(timed=True)
        both, self.seconds = self.seconds, kept
        return max(statistics.median(both[::2]) - statistics.median(both[1::2]), 0.0)

    def without_exchange(self) -> AbstractContextManager:
        """Inside, gradients stay on their rank."""
        backbone = self.job.backbone
        return backbone.no_sync() if isinstance(backbone, DataParallel) else nullcontext()

    def _wait_first(self, name: str) -> AbstractContextManager:
        if name == "head_step" and isinstance(self.job.backbone, DataParallel):
            self.job.backbone.wait_for_gradients()
        return record_function(name)

    @contextmanager
    def _timed_phase(self, name: str) -> Iterator[None]:
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self._parts[name] += time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def allocated_bytes(device: torch.device) -> int:
    """Bytes of tensors on a GPU; the most of them is counted anew from here on. 0 on a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_bytes(device: torch.device) -> int:
    """Most bytes of tensors on a GPU since `allocated_bytes` was last called; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def measure(
    jobs: Mapping[str, tuple[Config, int | Sequence[int]]],
    device: torch.device,
    num_steps: int,
    waiting_first: Collection[str] = (),
) -> dict[str, Side]:
    """num_steps timed steps of each (configuration, classes of each of its datasets), taking turns;
    collective.

    Args:
        waiting_first: names of those whose gradients are waited for in the backward pass.
    """
    sides = {}
    for name, (config, num_classes) in jobs.items():
        before = allocated_bytes(device)
        side = sides[name] = Side(config, num_classes, device, name in waiting_first)
        for _ in range(WARM_UP_STEPS):
            side.step(timed=False)
        side.held_bytes = allocated_bytes(device) - before
    for _ in range(num_steps):
        for side in sides.values():
            side.step(timed=True)
    for _ in range(max(num_steps // 2, 3)):
        for side in sides.values():
            with side.without_exchange():
                side.step(timed=False, parts=True)
    return sides


def summary(side: Side, cost: Cost, peak_flops: float) -> dict[str, Any]:
    """Speed of a variant; the same on every rank, but for the seconds of its parts.

    Args:
        peak_flops: of the device, for the utilisation: that of the model's own work, without what
            checkpointing or cached embeddings repeat.
    """
    seconds = statistics.median(side.seconds)
    memory = {"peak_bytes": side.held_bytes + side.step_bytes} if side.held_bytes else {}
    rank_flops = side.job.global_batch / parallel.world_size() * cost.training_flops
    return {
        "seconds": seconds,
        "seconds_min": min(side.seconds),
        "images_per_second": side.job.global_batch / seconds,
        "utilisation": rank_flops / seconds / peak_flops,
        "part_seconds": part_seconds(side),
        **memory,
    }


def part_seconds(side: Side) -> dict[str, float]:
    """Seconds of a step in each part, without DDP's exchange.

    Each part is waited for, so that their sum exceeds a step's without exchange. A teacher and an
    encoder are named only where there is one.
    """
    absent = {name for name in ("teacher", "encoder") if not any(side.parts[name])}
    return {
        name: statistics.median(found) for name, found in side.parts.items() if name not in absent
    }


def product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product on this device, measured."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)
