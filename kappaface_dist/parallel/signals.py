"""Being asked to stop: SIGTERM (a scheduler, torchrun), SIGINT (Ctrl-C), SIGUSR1 (Slurm)."""

import os
import signal
import time
from types import FrameType

import torch
import torch.distributed as dist

from kappaface_dist.parallel import ranks as parallel

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# For this node's torchrun, when another one's has stopped its ranks: it looks ten times a second.
OWN_TORCHRUN_SECONDS = 5.0


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

    def told_here(self) -> bool:
        """Whether a signal reached any rank of this one's node; collective.

        torchrun passes one on to all ranks of its node, and to those alone: the others stop with
        them, and their own torchrun knows nothing of it.
        """
        node = os.environ.get("GROUP_RANK", "0")
        told = parallel.gather_objects((node, self._received))
        return any(received for other, received in told if other == node)


def code_after_stop(told: bool, stop_exit_code: int) -> int:
    """The code with which a rank ends that stopped before the end of its run.

    torchrun takes 0 for the end of the run, and anything else for a crash, after which it starts
    its ranks again. So a rank whose node was told ends with 0. One that stopped for another node's
    sake must not: its own torchrun either stops it too, and is waited for, as when a node joins; or
    knows nothing, and starts it again with the nodes that are left.

    Args:
        told: what `StopSignal.told_here` said.
        stop_exit_code: for whoever started this process without torchrun.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return stop_exit_code
    if told:
        return 0
    time.sleep(OWN_TORCHRUN_SECONDS)  # a signal of torchrun's ends it here
    return stop_exit_code or 1
