"""The cores that there are for a process, and the processes that share a machine."""

import os


def num_cores() -> int:
    """Cores that this process may use; fewer than the machine has in a container or a job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def local_world_size() -> int:
    """Processes of this run on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def threads_per_rank() -> int:
    """The cores that this process may use, divided by the processes on this machine."""
    return max(1, num_cores() // local_world_size())
