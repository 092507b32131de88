"""Being asked to stop: SIGTERM (a scheduler, torchrun), SIGINT (Ctrl-C), SIGUSR1 (Slurm)."""

import signal
from types import FrameType

import torch
import torch.distributed as dist

from kappaface_dist.parallel import ranks as parallel

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignal:
    """Lets all ranks stop after the same step, whichever of them a signal reached.

        with StopSignal() as stop:
            for step in steps:
                ...
                if stop.requested():  # collective: once per step, on every rank
                    break

    Each call starts a sum of the ranks' flags on the CPU backend and reads that of the call before,
    which has arrived by then: nothing waits, and a stop comes one step later than it could.
    """

    def __init__(self) -> None:
        self._received = False
        self._previous: dict[int, object] = {}
        self._flag = torch.zeros(1)
        self._work: dist.Work | None = None

    def __enter__(self) -> "StopSignal":
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        if self._work is not None:
            self._work.wait()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def requested(self) -> bool:
        """Whether any rank had received a signal when it last asked."""
        if parallel.world_size() == 1:
            return self._received
        stop = False
        if self._work is not None:
            self._work.wait()
            stop = bool(self._flag.item())
        self._flag = torch.tensor([float(self._received)])
        self._work = dist.all_reduce(self._flag, async_op=True)
        return stop
