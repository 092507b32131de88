"""What the computer at hand has: GPUs, memory, cores."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from kappaface_dist.parallel.cores import num_cores
from kappaface_dist.planning.step_time import DEVICES

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Machine:
    """Attributes:
    num_gpus: 0 where the CPU computes.
    gpu: its name; "" for none.
    memory_bytes: of one GPU, or of the host where there is none.
    precision: the narrowest type that its products run fast in: bf16, fp16 or fp32.
    cores: that this process may use.
    """

    num_gpus: int
    gpu: str
    memory_bytes: int
    precision: str
    cores: int

    def __str__(self) -> str:
        memory = f"{self.memory_bytes / 1e9:.0f} GB"
        if self.num_gpus:
            return f"{self.num_gpus} x {self.gpu} with {memory} each, {self.cores} cores"
        return f"no GPU, {self.cores} cores, {memory} of memory"


def this_machine() -> Machine:
    """The computer that this runs on."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not num_gpus:
        return Machine(0, "", host_memory(), "fp32", num_cores())
    facts = torch.cuda.get_device_properties(0)
    precision = "bf16" if facts.major >= 8 else "fp16"
    return Machine(num_gpus, facts.name, facts.total_memory, precision, num_cores())


def machine_of(gpu: str, num_gpus: int) -> Machine:
    """Another computer, of so many GPUs (or cpu) of planning's list.

    Raises:
        ValueError: the list has no such GPU, or the number is not positive.
    """
    if gpu not in DEVICES:
        raise ValueError(f"--gpu is {gpu!r}, expected one of {', '.join(sorted(DEVICES))}")
    if num_gpus < 1:
        raise ValueError(
            f"--gpus is {num_gpus}, expected 1 or more: --gpu cpu is a machine without"
        )
    memory = int(DEVICES[gpu].memory_bytes)
    if gpu == "cpu":
        return Machine(0, "", memory, "fp32", num_gpus)
    return Machine(num_gpus, gpu, memory, "fp16" if "v100" in gpu else "bf16", 8 * num_gpus)


def host_memory() -> int:
    """Bytes of the host, or of the container's or job's limit where that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = CGROUP_LIMIT.read_text().strip()
    except OSError:
        return memory
    return min(memory, int(limit)) if limit.isdigit() else memory
