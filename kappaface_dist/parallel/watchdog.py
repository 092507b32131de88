"""Ends a run that hangs, and says which rank hangs at which step.

A rank that is stuck (a dead disk, a GPU that fell off, a stopped process) leaves the others waiting
in a collective, which at best ends much later and names nobody. So each rank publishes its progress
in the group's store from a thread of its own, and one without progress for the set time compares.

The store itself may hang, with the machine that keeps it, and so may the log. So one thread does
nothing but look at the clock, and another one talks: whatever it waits for, the first ends the run.
"""

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.parallel.rendezvous import connect

logger = logging.getLogger(__name__)
EXIT_CODE = 70  # EX_SOFTWARE
STORE_SECONDS = 5.0  # for an answer of the store; its own limit does not hold
SPEAK_SECONDS = 5.0  # for the log and the traceback
# Read at the start: a process whose parent dies gets another one.
PARENT = os.getppid()


class Watchdog:
    """Watches the ranks between __enter__ and __exit__; `tick` says that this one moves on.

    Args:
        timeout: seconds without a tick after which the run is ended; at most twice as much passes.
        tell: is told why, before the end.
    """

    def __init__(self, timeout: float, tell: Callable[[str], None] = lambda _: None):
        self._timeout, self._tell = timeout, tell
        self._pause = min(timeout / 10, 5.0)
        self._progress = (0, 0, "the start", time.monotonic())
        self._ended = threading.Event()
        self._store: dist.Store | None = None

    def __enter__(self) -> "Watchdog":
        self._progress = (0, 0, "the start", time.monotonic())
        if parallel.world_size() > 1:
            self._start(self._publish)
        if parallel.world_size() > 1 or _under_torchrun():
            self._start(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        # No thread is waited for: one may be in the store, for ever.
        self._ended.set()

    def tick(self, step: int, doing: str) -> None:
        """This rank begins something new.

        Args:
            step: steps done.
            doing: what it begins, for the message.
        """
        last, ticks, _, _ = self._progress
        ticks = ticks + 1 if step == last else 0
        self._progress = (step, ticks, doing, time.monotonic())

    def _start(self, function: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=function, name="watchdog", daemon=True)
        thread.start()
        return thread

    def _watch(self) -> None:
        """Look at the clock, and at nothing that could wait."""
        while not self._ended.wait(self._pause):
            if _under_torchrun() and os.getppid() != PARENT:
                self._end(
                    f"torchrun (process {PARENT}), which started this process, has died: it ends"
                    " too, since torchrun may start the run again elsewhere"
                )
            if parallel.world_size() > 1 and self._idle() > self._timeout:
                # Once more, when the others have said where they are too.
                self._ended.wait(self._pause)
                if self._idle() > self._timeout:
                    self._end(self._hang())

    def _idle(self) -> float:
        return time.monotonic() - self._progress[-1]

    def _publish(self) -> None:
        """Tell the store where this rank is; whoever waits for this thread sets a limit."""
        while not self._ended.wait(self._pause if self._store is not None else 0.0):
            try:
                if self._store is None:
                    # Of its own: the group's may be blocked by the very thing that hangs.
                    self._store = connect(timedelta(seconds=STORE_SECONDS))
                step, ticks, doing, _ = self._progress
                sign = {"step": step, "ticks": ticks, "doing": doing, "time": time.time()}
                self._store.set(_key(parallel.rank()), json.dumps(sign))
            except (dist.DistError, RuntimeError):
                self._ended.wait(self._pause)

    def _hang(self) -> str:
        """Why there is no progress, as far as the store says so in time."""
        found: list[str] = []

        def ask() -> None:
            try:
                # Again of its own: the other may wait for an answer.
                store = connect(timedelta(seconds=STORE_SECONDS))
                found.append(self._explain(store))
            except (dist.DistError, RuntimeError) as error:
                found.append(f"rank 0's machine, which keeps the store, is gone: {error}")

        step, _, doing, _ = self._progress
        self._start(ask).join(min(STORE_SECONDS, self._timeout / 2))
        reason = (
            found[0]
            if found
            else ("rank 0 hangs, or its machine: the store, which it keeps, does not answer")
        )
        return (
            f"no progress for {self._timeout / 60:.1f} minutes (run.timeout_minutes) at step"
            f" {step} ({doing}): {reason}"
        )

    def _explain(self, store: dist.Store) -> str:
        signs = {}
        for rank in range(parallel.world_size()):
            key = _key(rank)
            signs[rank] = json.loads(store.get(key)) if store.check([key]) else None
        silent = [
            f"rank {rank} shows no sign of life"
            + (f" since step {sign['step']} ({sign['doing']})" if sign else " at all")
            for rank, sign in signs.items()
            if sign is None or time.time() - sign["time"] > max(self._timeout / 2, 1.0)
        ]
        if silent:
            return "; ".join(silent)
        # All live: the first has begun least of what a step consists of, whoever of them asks.
        (last, behind), *others = sorted(
            ((rank, sign) for rank, sign in signs.items() if sign is not None),
            key=lambda found: (found[1]["step"], found[1]["ticks"], found[0]),
        )
        where = f"at step {behind['step']} ({behind['doing']})"
        ahead = [(rank, sign) for rank, sign in others if sign["doing"] != behind["doing"]]
        if any(sign["step"] > behind["step"] for _, sign in others):
            return f"rank {last} hangs {where}"
        if ahead:
            rank, sign = ahead[0]
            return f"rank {last} hangs {where}, or rank {rank} ({sign['doing']})"
        return f"all ranks hang {where}"

    def _end(self, reason: str) -> None:
        """End the process, whether the reason can be said or not."""

        def speak() -> None:
            logger.error("%s", reason)
            self._tell(reason)
            # Where this rank waits: os._exit leaves no other trace.
            faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
            logging.shutdown()

        self._start(speak).join(min(SPEAK_SECONDS, self._timeout / 4))
        os._exit(EXIT_CODE)


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _key(rank: int) -> str:
    return f"kappaface_dist/watchdog/{rank}"
