"""What a run reports while it goes: console, train.log, metrics.jsonl, TensorBoard, wandb.

Only rank 0 reports.
"""

import json
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch.profiler import record_function
from tqdm import tqdm

from kappaface_dist.head.margins.psi import measured_line, narrow_margins
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.best_so_far import BestSoFar
from kappaface_dist.training.head_log import by_dataset, datasets_text
from kappaface_dist.training.metrics_file import keep_steps_before, read_metrics

T = TypeVar("T")

logger = logging.getLogger("kappaface_dist")
TRAIN_NAMES = ("loss", "learning_rate", "epoch", "rank_1", "distill_loss")
SPEED_NAMES = (
    *("images_per_second", "data_wait_share", "checkpoint_pause_seconds"),
    *("slowest_rank", "slowest_rank_behind", "memory_bytes"),
)


@dataclass
class Meter:
    """Images and time since the last log line."""

    started: float = field(default_factory=time.perf_counter)
    paused: float = 0.0  # seconds of evaluation and checkpoints
    waited: float = 0.0  # seconds without a batch
    images: int = 0

    def seconds(self) -> float:
        """Spent in training steps; call it when the device has done them."""
        return time.perf_counter() - self.started - self.paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What is done here is no training."""
        started = time.perf_counter()
        yield
        self.paused += time.perf_counter() - started

    def wait_for(self, batches: Iterator[T]) -> T:
        """The next batch."""
        started = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - started
        return batch

    def wait_for_several(self, batches: Iterator[T], num: int) -> list[T]:
        """The next num batches; a profile shows the wait under its name."""
        with record_function("data_wait"):
            return [self.wait_for(batches) for _ in range(num)]


class Reporter:
    """Writes the numbers of a run; made on rank 0 only.

    Args:
        folder: the run folder.
        first_step: of this start; lines of later steps, written before an interruption and about to
            be repeated, are taken out of metrics.jsonl.
        total_steps: for the progress bar.
        tensorboard: whether to write folder/tensorboard.
        wandb: off, offline or online.
        run_name, settings: what wandb shows.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        total_steps: int,
        *,
        tensorboard: bool,
        wandb: str,
        run_name: str,
        settings: dict[str, Any],
    ):
        self._path = folder / "metrics.jsonl"
        keep_steps_before(self._path, first_step)
        self._best = BestSoFar(read_metrics(self._path))
        self._file = self._path.open("a", encoding="utf-8")
        self._writer, self._board = None, folder / "tensorboard"
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            _quiet_threads()
            self._writer = SummaryWriter(str(self._board), purge_step=first_step + 1)
        self._wandb = _start_wandb(wandb, folder, run_name, settings) if wandb != "off" else None
        # On a terminal a bar with the time left; elsewhere the log's lines say the same.
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._told_refreshes: dict[str, int] = {}  # by dataset

    def advance(self) -> None:
        """One step is done."""
        self._bar.update()

    def write(self, step: int, numbers: dict[str, float], line: str | None = None) -> None:
        """Record numbers under step, and print line.

        Raises:
            RuntimeError: a file cannot be written, or is not there any more.
        """
        try:
            self._file.write(json.dumps({"step": step, **numbers}) + "\n")
            self._file.flush()
            # Written into a file that nobody can open any more, it would be lost in silence.
            deleted = os.fstat(self._file.fileno()).st_nlink == 0
        except OSError as error:
            raise RuntimeError(f"{self._path} could not be written: {error}") from error
        if deleted:
            raise RuntimeError(f"{self._path} was deleted while the run was writing it")
        if self._writer is not None:
            # It writes beside us: what it says here may be of numbers before these.
            try:
                for name, number in numbers.items():
                    self._writer.add_scalar(board_name(name), number, step)
            except OSError as error:
                self._writer = None  # its thread is dead: closing would wait for it
                raise RuntimeError(f"{self._board} could not be written: {error}") from error
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)
        self._best.note(step, numbers)
        if line is not None:
            logger.info("%s%s", line, self._best.behind(numbers))

    def tell_margins(self, step: int, numbers: dict[str, float]) -> None:
        """Once after each refresh say what the margins are made of, and warn where it is little.

        Args:
            numbers: those of the head's summary among them.
        """
        for name, own in by_dataset(numbers).items():
            refreshes = int(own.get("margin_refreshes", 0))
            if refreshes == self._told_refreshes.get(name, 0):
                continue
            self._told_refreshes[name] = refreshes
            where = f"{step}, {name}" if name else f"{step}"
            logger.info("step %s: %s", where, measured_line(own))
            if warning := narrow_margins(own):
                logger.warning("step %s: %s", where, warning)

    def close(self) -> None:
        self._bar.close()
        with suppress(OSError):  # of a full disk: write() has said so
            self._file.close()
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                logger.error("%s: the last lines could not be written: %s", self._board, error)
        if self._wandb is not None:
            self._wandb.finish()


def report(
    reporter: Reporter | None, step: int, numbers: dict[str, float], line: str | None
) -> None:
    """Write a reporter's line; collective: a fault of the one that has it is every rank's."""
    parallel.agree(lambda: None if reporter is None else reporter.write(step, numbers, line))


def board_name(name: str) -> str:
    """TensorBoard's: names in groups by what they are about."""
    if "/" in name:  # accuracy/SET
        return name
    if name in TRAIN_NAMES:
        return f"train/{name}"
    return f"speed/{name}" if name in SPEED_NAMES else f"head/{name}"


def log_line(step: int, numbers: dict[str, float], images_left: int) -> str:
    """A log line for people, with the time left at the present speed."""
    seconds = int(images_left / numbers["images_per_second"])
    ranks = ""
    if "slowest_rank" in numbers:
        ranks = f"  slowest rank {numbers['slowest_rank']:.0f}"
        ranks += f" ({numbers['slowest_rank_behind']:+.0%})"
    rank_1 = f"  rank-1 {numbers['rank_1']:.1%}" if "rank_1" in numbers else ""
    if "non_dominant_share" in numbers:
        rank_1 += f"  at other centres {numbers['non_dominant_share']:.1%}"
    taught = f"  teacher {numbers['distill_loss']:.3f}" if "distill_loss" in numbers else ""
    return (
        f"step {step}  epoch {numbers['epoch']:.2f}  loss {numbers['loss']:.3f}{taught}{rank_1}"
        f"  lr {numbers['learning_rate']:.4f}  {numbers['images_per_second']:.0f} images/s"
        f"  data wait {numbers['data_wait_share']:.0%}{ranks}  margin {numbers['margin_mean']:.3f}"
        f" ({numbers['margin_min']:.3f} to {numbers['margin_max']:.3f})"
        f"  left {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        + datasets_text(numbers)
    )


def _quiet_threads() -> None:
    """A full disk ends TensorBoard's thread with a traceback: Reporter.write says it in a line."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        from_board = type(args.thread).__module__.startswith("tensorboard.")
        if not (from_board and issubclass(args.exc_type, OSError)):
            before(args)

    threading.excepthook = hook


def _start_wandb(mode: str, folder: Path, run_name: str, settings: dict[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise RuntimeError(
            f"log.wandb is {mode}, but wandb is not installed: pip install 'kappaface_dist[wandb]'"
        ) from error
    # The same id after a restart: wandb then continues the run instead of starting another.
    id_file = folder / "wandb_id"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return wandb.init(
        project="kappaface_dist",
        dir=str(folder),
        name=run_name,
        id=id_file.read_text(encoding="utf-8"),
        resume="allow",
        mode=mode,  # type: ignore[arg-type]
        config=settings,
    )
