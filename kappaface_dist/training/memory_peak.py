"""The most memory that a process of a run has held."""

import resource

import torch

from kappaface_dist.parallel import ranks as parallel


def memory_bytes(device: torch.device) -> int:
    """The most that this process has held so far: of the GPU's memory, or of the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_peak(device: torch.device) -> dict[str, float]:
    """The fullest rank's, which runs out first, for a log line; collective."""
    own = torch.tensor([float(memory_bytes(device))], dtype=torch.float64)
    return {"memory_bytes": parallel.all_reduce_max(own).item()}
