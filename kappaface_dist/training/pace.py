"""Which rank holds up the others, and by how much: a bad GPU, a hot one, a slow disk.

In the step's collectives every rank waits for the slowest, so that all take the same time. What is
compared is a rank's own work: its wait for data and the parts of a step without a collective. With
backbone.sync_batchnorm the forward pass has some, and is left out.

Shapes: N ranks.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function

from kappaface_dist.parallel import ranks as parallel

OWN = ("backbone_forward", "head_step", "optimizer")
BEHIND = 0.2  # of the others' own work, from which on a rank is slow
LONG = 10  # log lines one after another in which it is


class Pace:
    """Times this rank's own work between two log lines, and compares it with the others'.

    Args:
        device: of the training; a GPU's work is timed by its own clock, without waiting for it.
        synced_forward: the backbone's forward pass waits for other ranks.
    """

    def __init__(self, device: torch.device, *, synced_forward: bool = False):
        self._on_gpu = device.type == "cuda"
        self._own = OWN[1:] if synced_forward else OWN
        self._seconds = 0.0
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._slow: tuple[int, int] = (-1, 0)  # a rank, and log lines in which it was slow

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A part of a step, by its name for profiles."""
        with record_function(name):
            if name not in self._own:
                yield
            elif self._on_gpu:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                yield
                end.record()
                self._pending.append((begin, end))
            else:
                started = time.perf_counter()
                yield
                self._seconds += time.perf_counter() - started

    def compare(self, waited: float, seconds: float) -> dict[str, float]:
        """The numbers of a log line, the same on all ranks; collective. Begins anew.

        Args:
            waited: seconds without a batch since the last time.
            seconds: since the last time. The device has done its work.
        """
        for begin, end in self._pending:
            self._seconds += begin.elapsed_time(end) / 1000
        row_2 = torch.tensor([[waited / seconds, waited + self._seconds]], dtype=torch.float64)
        rows_N2 = parallel.all_gather_rows(row_2)
        self._seconds = 0.0
        self._pending.clear()
        # The longest wait is what everybody waits for.
        numbers = {"data_wait_share": rows_N2[:, 0].max().item()}
        if len(rows_N2) > 1:
            rank, behind = slowest(rows_N2[:, 1].tolist())
            numbers |= {"slowest_rank": rank, "slowest_rank_behind": behind}
        return numbers

    def warning(self, numbers: dict[str, float]) -> str | None:
        """What to say when one rank has been slow in LONG log lines in a row: once, till it is not.

        Args:
            numbers: those of `compare`.
        """
        rank, behind = int(numbers.get("slowest_rank", -1)), numbers.get("slowest_rank_behind", 0.0)
        before, lines = self._slow
        if behind < BEHIND:
            self._slow = (-1, 0)
            return None
        self._slow = (rank, lines + 1 if rank == before else 1)
        if self._slow[1] != LONG:
            return None
        return (
            f"rank {rank} has been the slowest in {LONG} log lines in a row, now by {behind:.0%}"
            " of the others' own work (data, forward pass, updates), and all wait for it: look"
            " at its machine (temperature and clock of its GPU, other programs, its disk)"
        )


def slowest(own_N: list[float]) -> tuple[int, float]:
    """(rank, how much more it took than the median of the others, as a share of that)."""
    rank = max(range(len(own_N)), key=lambda rank: own_N[rank])
    others = sorted(own_N[:rank] + own_N[rank + 1 :])
    middle = len(others) // 2
    median = (others[middle] + others[-1 - middle]) / 2
    return rank, own_N[rank] / max(median, 1e-9) - 1.0
