"""Time and memory of PartialFC beside a dense head, measured in one run.

Shapes: B images on this rank, G images on all ranks, D embedding size, C all classes, K classes of
this shard.
"""

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.nn.functional import all_gather, all_reduce

from kappaface_dist import parallel
from kappaface_dist.head.margins import ArcFace
from kappaface_dist.head.partial_fc import PartialFC
from kappaface_dist.head.shard import initial_centres, shard_classes

LR = 0.1


class Side(Protocol):
    """A head under measurement: one call is forward, backward and step."""

    def train_step(self, embedding_BD: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor: ...

    def state(self) -> list[torch.Tensor]: ...


class StreamingSide:
    """PartialFC."""

    def __init__(self, head: PartialFC):
        self.head = head

    def train_step(self, embedding_BD: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        loss = self.head(embedding_BD, label_B)
        loss.backward()
        self.head.step(LR)
        return loss.detach()

    def state(self) -> list[torch.Tensor]:
        return [self.head.weight_KD, *self.head.row_state.values()]


class DenseSide(torch.nn.Module):
    """ArcFace as it is commonly written: all logits at once, autograd, torch.optim.SGD.

    The class matrix is sharded over the ranks where there are several, with the softmax's maximum
    and sum reduced over them. In bf16 the matrix products run under autocast.
    """

    def __init__(
        self, num_classes: int, embedding_size: int, dtype: torch.dtype, device: torch.device
    ):
        super().__init__()
        self.margin = ArcFace()
        self.dtype = dtype
        self.classes = shard_classes(num_classes, parallel.rank(), parallel.world_size())
        weight_KD = initial_centres(self.classes, embedding_size, 0, torch.float32, device)
        self.weight_KD = torch.nn.Parameter(weight_KD)
        self.optimizer = torch.optim.SGD(
            self.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4, foreach=False
        )

    def forward(self, embedding_BD: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        embedding_GD, label_G = F.normalize(embedding_BD), label_B
        if parallel.world_size() > 1:
            embedding_GD = torch.cat(all_gather(embedding_GD))
            label_G = parallel.all_gather_rows(label_B)
        reduced = self.dtype == torch.bfloat16
        with torch.autocast(embedding_BD.device.type, self.dtype, enabled=reduced):
            cosine_GK = F.linear(embedding_GD, F.normalize(self.weight_KD))
        cosine_GK = cosine_GK.float()
        image = torch.where((label_G >= self.classes.start) & (label_G < self.classes.stop))[0]
        column = label_G[image] - self.classes.start
        theta = torch.acos(cosine_GK[image, column].clamp(-1 + 1e-7, 1 - 1e-7))
        logit_GK = cosine_GK.index_put((image, column), torch.cos(theta + self.margin.margin))
        logit_GK = logit_GK * self.margin.scale
        if parallel.world_size() == 1:
            return F.cross_entropy(logit_GK, label_G)
        largest_G = parallel.all_reduce_max(logit_GK.detach().amax(dim=1))
        sum_G = all_reduce((logit_GK - largest_G[:, None]).exp().sum(dim=1))
        target_G = torch.zeros_like(sum_G).index_put((image,), logit_GK[image, column])
        return (sum_G.log() + largest_G - all_reduce(target_G)).mean()

    def train_step(self, embedding_BD: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        loss = self(embedding_BD, label_B)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def state(self) -> list[torch.Tensor]:
        momentum = self.optimizer.state[self.weight_KD]["momentum_buffer"]
        return [self.weight_KD.detach(), momentum]


class Batch:
    """Random images of this rank, the same for every side."""

    def __init__(self, num_classes: int, num_images: int, size: int, device: torch.device):
        generator = torch.Generator().manual_seed(parallel.rank())
        self.label_B = torch.randint(num_classes, (num_images,), generator=generator).to(device)
        self.embedding_BD = torch.randn(num_images, size, generator=generator).to(device)

    def run(self, side: Side) -> torch.Tensor:
        return side.train_step(self.embedding_BD.clone().requires_grad_(), self.label_B)


def seconds_per_step(
    sides: dict[str, Side], batch: Batch, num_repeats: int
) -> dict[str, tuple[list[float], list[float]]]:
    """(seconds, processor seconds) of each step, the sides taking turns; the slowest rank's.

    The processor's seconds, over all threads, are the steadier where others use the machine too.
    """
    device = batch.label_B.device
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides}
    for repeat in range(num_repeats + 1):
        for name, side in sides.items():
            parallel.barrier()
            _wait(device)
            start, busy_start = time.perf_counter(), time.process_time()
            batch.run(side)
            _wait(device)
            own = [time.perf_counter() - start, time.process_time() - busy_start]
            slowest = parallel.all_reduce_max(torch.tensor(own, dtype=torch.float64, device=device))
            if repeat:  # the first round warms up
                for values, value in zip(times[name], slowest.tolist(), strict=True):
                    values.append(value)
    return times


def extra_bytes(build: Callable[[], Side], batch: Batch, num_steps: int = 2) -> tuple[Side, int]:
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


def state_bytes(side: Side) -> int:
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


def measure(
    builders: dict[str, Callable[[], Side]],
    batch: Batch,
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
    sides: dict[str, Side] = {}
    for name, build in builders.items():
        sides[name], extra = extra_bytes(build, batch)
        report[name] = {
            "extra_bytes": extra,
            "extra_bytes_per_logit": extra / num_logits,
            "state_bytes_per_parameter": state_bytes(sides[name]) / num_parameters,
        }
    for name, (seconds, busy) in seconds_per_step(sides, batch, num_repeats).items():
        median = statistics.median(seconds)
        report[name] |= {
            "seconds": median,
            "seconds_min": min(seconds),
            "seconds_each": seconds,
            "processor_seconds": statistics.median(busy),
            "ps_per_logit": median * 1e12 / num_logits,
        }
    return report


def is_rank0() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def local_classes(num_classes: int) -> int:
    """Rows of the largest shard."""
    return math.ceil(num_classes / parallel.world_size())
