"""Ends a run that hangs, and says which rank hangs at which step.

A rank that is stuck (a dead disk, a GPU that fell off, a stopped process) leaves the others waiting
in a collective, which at best ends much later and names nobody. So each rank publishes its progress
in the group's store from a thread of its own, and one without progress for the set time compares.
"""

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.parallel.rendezvous import connect

logger = logging.getLogger(__name__)
EXIT_CODE = 70  # EX_SOFTWARE


class Watchdog:
    """Watches the ranks between __enter__ and __exit__; `tick` says that this one moves on.

    Args:
        timeout: seconds without a tick after which the run is ended.
    """

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._progress = (0, "the start", time.monotonic())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._progress = (0, "the start", time.monotonic())
        if parallel.world_size() > 1:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def tick(self, step: int, doing: str) -> None:
        """This rank begins something new.

        Args:
            step: steps done.
            doing: what it begins, for the message.
        """
        self._progress = (step, doing, time.monotonic())

    def _watch(self) -> None:
        # A connection of its own: the group's may be blocked by the very thing that hangs.
        store = connect(timedelta(seconds=5))
        pause = 0.0
        while not self._ended.wait(pause):
            pause = min(self._timeout / 10, 5.0)
            step, doing, since = self._progress
            idle = time.monotonic() - since
            try:
                sign = {"step": step, "doing": doing, "idle": idle, "time": time.time()}
                store.set(_key(parallel.rank()), json.dumps(sign))
                if idle > self._timeout:
                    self._end(self._explain(store, step, doing))
            except dist.DistError as error:
                if idle > self._timeout:
                    self._end(f"rank 0's machine, which keeps the store, is gone: {error}")

    def _explain(self, store: dist.Store, step: int, doing: str) -> str:
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
        # All live: whoever began its present work last or is steps behind holds up the others.
        steps = {rank: (sign["step"], -sign["idle"]) for rank, sign in signs.items() if sign}
        last = min(steps, key=lambda rank: (steps[rank][0], steps[rank][1]))
        sign = signs[last]
        assert sign is not None
        if sign["step"] < max(found for found, _ in steps.values()):
            return f"rank {last} hangs at step {sign['step']} ({sign['doing']})"
        busy = [rank for rank, found in signs.items() if found and found["doing"] != doing]
        if busy:
            other = signs[busy[0]]
            assert other is not None
            return (
                f"rank {busy[0]} hangs at step {other['step']} ({other['doing']}), or rank"
                f" {parallel.rank()} ({doing})"
            )
        return f"all ranks hang at step {step} ({doing})"

    def _end(self, reason: str) -> None:
        logger.error(
            "no progress for %.1f minutes (run.timeout_minutes) at step %d (%s): %s",
            self._timeout / 60,
            *self._progress[:2],
            reason,
        )
        # Where this rank waits: os._exit leaves no other trace.
        faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
        logging.shutdown()
        os._exit(EXIT_CODE)


def _key(rank: int) -> str:
    return f"kappaface_dist/watchdog/{rank}"
