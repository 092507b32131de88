"""One rank of a large job, run for a few steps with pretended neighbours and made-up images.

Its tensors and its computation are the real ones; what it reports is measured. Inside
`pretend_gpu` the tensors are fake: nothing is computed, and bytes are what is measured.
"""

import itertools
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config
from kappaface_dist.head import PartialFC
from kappaface_dist.head.heads import heads_by_name
from kappaface_dist.planning.count_collectives import CountCollectives
from kappaface_dist.planning.made_up_job import made_up_job, random_batches
from kappaface_dist.planning.memory import JobSize, head_state_bytes
from kappaface_dist.planning.memory_meter import MemoryMeter, num_bytes
from kappaface_dist.training.build import Learner
from kappaface_dist.training.step import train_step

# At least; when the last begins, DDP has found its buckets and the optimizer made its state. On a
# GPU that is not here both are so after the first.
NUM_STEPS, NUM_FAKE_STEPS = 3, 2
HEAD = "head"  # what is made in its two parts of a step


def rehearse(config: Config, size: JobSize, device: torch.device) -> dict[str, Any]:
    """Run a few steps inside `pretend_ranks` and measure the last.

    Returns:
        memory_bytes by item, the collectives of the step, seconds of the step and of its parts, and
        peak_process_bytes, the operating system's word for all of it.
    """
    job = made_up_job(config, size.classes_of_each, device)
    return rehearse_steps(job) | {"peak_process_bytes": _peak_process_bytes(device)}


def rehearse_steps(job: Learner, *, fake: bool = False) -> dict[str, Any]:
    """`rehearse`, but for the system's word, with a job that is there.

    Args:
        fake: inside `pretend_gpu`, where no allocator can be asked.
    """
    config, device, heads = job.config, job.device, _heads(job)
    batches = random_batches(config, [head.num_classes for head in heads], device)
    num_steps = steps_to_run(config, NUM_FAKE_STEPS if fake else NUM_STEPS)
    phases = _Phases(job, on_gpu=device.type == "cuda" and not fake)
    for step in range(num_steps - 1):
        train_step(job, batches, 0.01, step * job.global_batch)
    started = time.perf_counter()
    with CountCollectives() as count, phases.meter:
        loss = train_step(job, batches, 0.01, num_steps * job.global_batch, phase=phases.enter)
    seconds = time.perf_counter() - started
    return {
        "loss": loss.item(),
        "classes_per_rank": sum(len(head.classes) for head in heads),
        "memory_bytes": phases.memory_items(batches),
        "collectives": count.calls,
        "seconds": seconds,
        "seconds_by_part": phases.seconds,
    }


def steps_to_run(config: Config, at_least: int) -> int:
    """So many that no window of the class statistics ends with the last, unless all do."""
    windows = [own.margin.get("refresh_steps", 0) for own in datasets(config).values()]
    steps = itertools.count(at_least)
    return next(n for n in steps if all(window < 2 or n % window for window in windows))


def _heads(job: Learner) -> list[PartialFC]:
    return list(heads_by_name(job.head).values())


class _Phases:
    """Bytes and seconds of each part of a step."""

    def __init__(self, job: Learner, *, on_gpu: bool):
        self.job, self.on_gpu = job, on_gpu
        self.meter = MemoryMeter(job.device.type)
        self.held: dict[str, int] = {}
        self.peak: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.cache_bytes = 0

    @contextmanager
    def enter(self, name: str) -> Iterator[None]:
        before, _ = self._bytes()
        started = time.perf_counter()
        self.meter.reset_peak()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.meter.label = HEAD if name.startswith("head_") else ""
        yield
        self.meter.label = ""
        live, peak = self._bytes()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.held[name] = max(self.held.get(name, 0), live - before)
        self.peak[name] = max(self.peak.get(name, 0), peak - before)
        self.cache_bytes = max(self.cache_bytes, self.job.head.held_cache_bytes())

    def _bytes(self) -> tuple[int, int]:
        """(alive, most since the part began); on a GPU when it has done all work so far."""
        if not self.on_gpu:
            return self.meter.live_bytes, self.meter.peak_bytes
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()

    def memory_items(self, batches: list[Any]) -> dict[str, int]:
        job, heads = self.job, _heads(self.job)
        seen = num_bytes(t for head in heads for t in head.class_margins.held_tensors())
        states = [head_state_bytes(head) for head in heads]
        # A GPU's allocator does not know whose bytes are whose.
        head = max(self.peak["head_forward"], self.peak["head_step"] + self.cache_bytes)
        if not self.on_gpu:
            head = self.meter.peak_of[HEAD]
        trained = [p for p in job.network.parameters() if p.requires_grad]
        gradients = num_bytes(p.grad for p in trained if p.grad is not None)
        moments = [
            t for s in job.optimizer.state.values() for t in s.values() if torch.is_tensor(t)
        ]
        backward = self.peak["backward"]
        if job.backbone is job.network:  # the gradients came to be in the backward pass
            backward = max(backward - gradients, 0)
        return {
            "backbone_parameters": num_bytes([*job.network.parameters(), *job.network.buffers()]),
            "backbone_gradients": gradients,
            "backbone_optimizer": num_bytes(moments),
            **self._of_the_margin(),
            "images": num_bytes(batch.image_B3HW for batch in batches),
            "activations": self.held["backbone_forward"],
            "backward_workspace": backward,
            "optimizer_workspace": self.peak["optimizer"],
            **self._teacher_items(),
            **{name: sum(state[name] for state in states) for name in states[0]},
            "logit_cache": self.cache_bytes,
            "held_embeddings": seen,
            "head_buffers": max(head - self.cache_bytes - seen, 0),
        }

    def _of_the_margin(self) -> dict[str, int]:
        found, memories = {}, [head.class_margins.memory for head in _heads(self.job)]
        if any(memory is not None for memory in memories):
            found["image_memory"] = num_bytes(m.row_JD for m in memories if m is not None)
        if (encoder := self.job.encoder) is not None:
            found["momentum_encoder"] = num_bytes([*encoder.parameters(), *encoder.buffers()])
        return found

    def _teacher_items(self) -> dict[str, int]:
        distiller = self.job.distiller
        network = None if distiller is None else distiller.network
        if network is None:
            return {}
        weights = num_bytes([*network.parameters(), *network.buffers()])
        return {"teacher": weights, "teacher_activations": self.peak["teacher"]}


def _peak_process_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
