"""Saves checkpoints while training goes on.

The training pauses only while the tensors are copied into host memory; a thread then writes the
copy, with a process group of its own, and gives the checkpoint its name once it is whole. The copy
costs as much host memory per rank as the rank's share of the checkpoint, or as much as it is given:
the training then waits until the rest has been read.
"""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import torch

from kappaface_dist.checkpoint.folder import check_free_space, delete_old, step_folder
from kappaface_dist.checkpoint.one_state import NumClasses, Tensors, one_state
from kappaface_dist.checkpoint.pieces import HostCopies, PiecePlanner
from kappaface_dist.checkpoint.tensors import write
from kappaface_dist.parallel import ranks as parallel

logger = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of a run; constructing and calling it is collective.

    Args:
        root: the run's folder of checkpoints.
        keep: the last so many stay.
        best: name of the metric of which the best checkpoint stays too.
        asynchronous: write beside the training.
        host_bytes: of the copies, for each rank, at most; None: as many as they take.

    Attributes:
        pause: seconds for which the last save held up the training.
        copies: the host memory for the copies.
    """

    def __init__(
        self,
        root: Path,
        *,
        keep: int,
        best: str | None,
        asynchronous: bool,
        host_bytes: int | None = None,
    ):
        self.pause = 0.0
        self._root, self._keep, self._best = root, keep, best
        self._asynchronous = asynchronous
        self._group = parallel.background_group() if asynchronous else None
        self.copies = HostCopies(host_bytes)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(
        self,
        step: int,
        replicated: Tensors,
        sharded: Tensors,
        num_classes: NumClasses,
        numbers: dict[str, Any],
        pieces: Tensors | None = None,
    ) -> None:
        """Save a checkpoint, and delete those that need not stay once it is whole.

        Args:
            replicated, sharded, num_classes: as in `checkpoint.one_state`.
            numbers: what JSON holds; "metrics" by name in it decides which checkpoint is best.
            pieces: tensors of this rank alone, under names of its own (`image_rows.py`).

        Raises:
            RuntimeError: it does not fit on the disk or could not be written, or the one before
                could not; on every rank.
        """
        started = time.perf_counter()
        self.finish()
        pieces = pieces or {}
        self._check_space(replicated, sharded | pieces)
        changing = replicated | sharded | pieces
        copied = self.copies.take(changing) if self._asynchronous else None
        state = one_state(replicated | pieces, sharded, num_classes)
        planner = PiecePlanner(copied)
        if self._asynchronous:
            # A daemon: a rank that fails elsewhere must end, even in the middle of a save.
            self._thread = threading.Thread(
                target=self._write, args=(step, state, numbers, started, planner), daemon=True
            )
            self._thread.start()
            if self.copies.room.left_bytes:
                planner.all_read.wait()
            self.pause = time.perf_counter() - started
        else:
            self._write(step, state, numbers, started, planner)
            self.pause = time.perf_counter() - started
            self.finish()

    def reserve(self, tensors: Tensors) -> None:
        """Set memory aside for copies of these tensors, so that the first save is as quick."""
        if self._asynchronous:
            self.copies.reserve(tensors)
            if self.copies.room.left_bytes:
                logger.info(
                    "a checkpoint's copies take %.0f MB of host memory a rank; another %.0f MB find"
                    " no room in checkpoint.host_bytes, and the training waits while they are"
                    " written",
                    self.copies.room.num_bytes / 1e6,
                    self.copies.room.left_bytes / 1e6,
                )

    def finish(self) -> None:
        """Wait for the save under way.

        Raises:
            RuntimeError: it failed; on every rank.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None

        def check() -> None:
            if error is not None:
                raise RuntimeError(f"a checkpoint could not be saved: {error}") from error

        parallel.agree(check)

    def _write(
        self,
        step: int,
        state: dict[str, torch.Tensor],
        numbers: dict[str, Any],
        started: float,
        planner: PiecePlanner,
    ) -> None:
        try:
            write(step_folder(self._root, step), state, numbers, self._group, planner)
            if parallel.rank() == 0:
                delete_old(self._root, self._keep, self._best)
        except Exception as error:  # noqa: BLE001 - finish() raises it in the training thread
            self._error = error
            return
        finally:
            planner.all_read.set()
        seconds = time.perf_counter() - started
        logger.info("checkpoint of step %d is whole after %.2f s", step, seconds)

    def _check_space(self, replicated: Tensors, sharded: Tensors) -> None:
        own = sum(t.numel() * t.element_size() for t in sharded.values())
        num_bytes = sum(parallel.gather_objects(own))
        num_bytes += sum(t.numel() * t.element_size() for t in replicated.values())

        def check() -> None:
            self._root.mkdir(parents=True, exist_ok=True)
            check_free_space(self._root, num_bytes)

        parallel.agree(lambda: check() if parallel.rank() == 0 else None)
