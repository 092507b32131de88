"""The most memory that a process has held."""

from pathlib import Path

import pytest
import torch

from kappaface_dist.training.memory_peak import memory_bytes, memory_peak


def test_memory_is_the_highest_of_the_process():
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    cpu = torch.device("cpu")
    assert memory_bytes(cpu) == pytest.approx(peak, rel=0.05)
    assert memory_peak(cpu) == {"memory_bytes": pytest.approx(peak, rel=0.05)}
