"""The training loop.

Shapes: B images on this rank, D embedding size, K classes of this shard, H W image size.
"""

import logging
from collections.abc import Sequence

import torch

from kappaface_dist.commands import tell_torchrun
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.evaluation.one_to_one.pairs import PairResult
from kappaface_dist.head.heads import heads_by_name
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.parallel.signals import StopSignal
from kappaface_dist.parallel.watchdog import Watchdog
from kappaface_dist.training.build import Job, peak_lr
from kappaface_dist.training.fit import check_corrupt_share
from kappaface_dist.training.head_log import head_numbers, start_counting
from kappaface_dist.training.loss_guard import LossGuard, NonFiniteLoss, likely_cause
from kappaface_dist.training.memory_peak import memory_peak
from kappaface_dist.training.metrics import Meter, Reporter, log_line, report
from kappaface_dist.training.optim import schedule_factor
from kappaface_dist.training.pace import Pace
from kappaface_dist.training.profiling import StepProfiler
from kappaface_dist.training.recovery import recover
from kappaface_dist.training.run_state import build_saver, load_state, save_state
from kappaface_dist.training.step import train_step
from kappaface_dist.training.summary import start_reporter
from kappaface_dist.training.verification import verify_sets

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a job from where its last checkpoint left it.

    Attributes:
        state: how far the run is.
        results: of the last evaluation, by set.
        told: this rank's node was told to stop; another one's may have been.
    """

    def __init__(self, job: Job):
        self.job = job
        self.config = job.config
        self.results: dict[str, PairResult] = {}
        self.metrics: dict[str, float] = {}  # of an evaluation at the present step
        self.told = False
        self.state = load_state(job)
        self.saver = build_saver(job)
        self.watchdog = Watchdog(60 * self.config.run.timeout_minutes, tell_torchrun)
        self.guard = LossGuard(job, late=job.device.type != "cpu")
        self.pace = Pace(job.device, synced_forward=self.config.backbone.sync_batchnorm)
        self.total_images = job.length.images_to_read(self.state.step, self.state.position)

    @property
    def finished(self) -> bool:
        return self.job.length.steps_left(self.state.step, self.state.position) == 0

    def fit(self) -> bool:
        """Train to the end of the run, or until asked to stop; whether the end was reached."""
        with StopSignal() as stop, self.watchdog:
            while True:
                try:
                    return self._fit(stop)
                except NonFiniteLoss as bad:
                    self.state = recover(self.job, self.state, self.saver, bad)
                    self.guard.reset()

    def _fit(self, stop: StopSignal) -> bool:
        steps_left = self.job.length.steps_left(self.state.step, self.state.position)
        reporter = parallel.agree(lambda: start_reporter(self.config, self.state.step, steps_left))
        meter = Meter()
        profiler = StepProfiler(self.config.folder, self.config.profile.steps)
        accumulate = self.config.optimizer.accumulate
        batches = iter(self.job.loader.batches(self.state.position, steps_left * accumulate))
        loss = torch.tensor(self.state.last_loss)
        try:
            for _ in range(steps_left):
                with profiler.step(self.state.step):
                    self.watchdog.tick(self.state.step, "waiting for data")
                    micro_batches = meter.wait_for_several(batches, accumulate)
                    self.watchdog.tick(self.state.step, "training")
                    if self._is_skipped():
                        logger.warning("step %d is skipped", self.state.step)
                    else:
                        loss = self.take_step(micro_batches)
                self._advance(meter, reporter)
                stopping = stop.requested() and not self.finished
                if self._due(self.config.log.every) or stopping:
                    meter = self._log(loss, meter, reporter)
                with meter.pause():
                    if self._due(self.config.evaluate.every) and not stopping:
                        self.evaluate(reporter)
                    if is_best := self._is_best():
                        self.state.best = self.metrics[self.config.checkpoint.best or ""]
                    if self._due(self.config.checkpoint.every) or is_best or stopping:
                        self.save(loss, reporter)
                    if stopping:
                        self.saver.finish()
                        self.told = stop.told_here()
                        logger.info("stopped at step %d, to go on later", self.state.step)
                        return False
            if not self.results:
                self.evaluate(reporter)  # a run that had ended before it was reported
            self.saver.finish()
            return True
        finally:
            profiler.close()
            self.job.loader.close()
            if reporter is not None:
                reporter.close()

    def take_step(self, batches: list[Batch]) -> torch.Tensor:
        """One optimizer step of backbone and head; returns the loss before it."""
        if (self.state.step + 1) % self.config.log.every == 0:
            start_counting(self.job.head)
        lr = self.learning_rate(self.state.position)
        section = self.config.backbone
        factor = section.first_lr_factor if self.state.step < section.first_steps else 1.0
        return train_step(
            self.job,
            batches,
            lr,
            self.state.position,
            epoch=self.job.epochs(self.state.position),
            check=self._watch_loss,
            phase=self.pace.phase,
            backbone_factor=factor,
        )

    def learning_rate(self, position: int) -> float:
        """Of the step that begins at position."""
        section = self.config.optimizer
        return peak_lr(self.config) * schedule_factor(
            section.schedule,
            position,
            self.total_images,
            section.warmup_epochs * self.job.num_images,
            section.power,
        )

    def evaluate(self, reporter: Reporter | None) -> None:
        """Verify on every set; collective."""
        self._share_running_statistics()
        self.results = verify_sets(
            self.job,
            self.job.network,
            progress=lambda _: self.watchdog.tick(self.state.step, "verifying"),
        )
        for name, result in self.results.items():
            if result.accuracy is None:
                logger.warning("step %d: %s: %s", self.state.step, name, result.note)
            else:
                self.metrics[f"accuracy/{name}"] = result.accuracy
        if self.metrics:
            line = ", ".join(f"{name} {value:.2%}" for name, value in self.metrics.items())
            report(reporter, self.state.step, self.metrics, f"step {self.state.step}: {line}")

    def _is_best(self) -> bool:
        """Whether an evaluation at this step is better in checkpoint.best than all before."""
        value = self.metrics.get(self.config.checkpoint.best or "")
        return value is not None and (self.state.best is None or value > self.state.best)

    def save(self, loss: torch.Tensor, reporter: Reporter | None) -> None:
        """Save a checkpoint of this step; collective.

        Args:
            loss: of this step: a broken state must not become the last checkpoint.
        """
        self._check_loss(loss)
        self.watchdog.tick(self.state.step, "saving")
        self._share_running_statistics()
        save_state(self.saver, self.job, self.state, self.metrics)
        line = f"checkpoint of step {self.state.step}: paused {self.saver.pause:.2f} s"
        report(reporter, self.state.step, {"checkpoint_pause_seconds": self.saver.pause}, line)

    def _is_skipped(self) -> bool:
        """Whether this step reads from a place where the loss was not finite before."""
        end = self.state.position + self.job.global_batch
        return any(self.state.position <= place < end for place in self.state.skipped)

    def _share_running_statistics(self) -> None:
        for buffer in self.job.network.buffers():
            parallel.broadcast_from_rank0(buffer)

    def _due(self, every: int | None) -> bool:
        """Every so many steps, and at the end."""
        return self.finished or (every is not None and self.state.step % every == 0)

    def _advance(self, meter: Meter, reporter: Reporter | None) -> None:
        """Count the step, and the epochs that end in it: with each ends a window of statistics."""
        before = self.job.epochs(self.state.position)
        self.state.position += self.job.global_batch
        self.state.step += 1
        self.metrics = {}
        meter.images += self.job.global_batch
        now = self.job.epochs(self.state.position)
        for name, head in heads_by_name(self.job.head).items():
            for _ in range(before[name], now[name]):
                head.end_epoch()
        if reporter is not None:
            reporter.advance()

    def _log(self, loss: torch.Tensor, meter: Meter, reporter: Reporter | None) -> Meter:
        """Report what happened since the last time; returns an empty meter. Collective."""
        self._check_loss(loss)
        check_corrupt_share(self.job.loader, self.config.data.max_corrupt_share)
        seconds = meter.seconds()
        self.state.seconds += seconds
        numbers = {
            "loss": self.state.last_loss,
            # Of the step that was just done.
            "learning_rate": self.learning_rate(self.state.position - self.job.global_batch),
            "epoch": self.state.position / self.job.num_images,
            "images_per_second": meter.images / seconds,
            **self.pace.compare(meter.waited, seconds),
            **memory_peak(self.job.device),
            **head_numbers(self.job.head),
        }
        numbers |= self.job.distiller.take() if self.job.distiller else {}
        left = self.total_images - self.state.position
        report(reporter, self.state.step, numbers, log_line(self.state.step, numbers, left))
        if reporter is not None:
            reporter.tell_margins(self.state.step, numbers)
            advice = self.job.loader.advise(numbers["data_wait_share"])
            for text in (advice, self.pace.warning(numbers)):
                if text:
                    logger.warning(text)
        return Meter()

    def _watch_loss(self, loss: torch.Tensor, batches: Sequence[Batch]) -> None:
        """Take note of a micro-batch's loss before anything is changed."""
        self.guard.watch(loss, self.state.position, batches)
        if not self.guard.late:
            self._check_loss(loss)

    def _check_loss(self, loss: torch.Tensor) -> None:
        """Raise on every rank if a loss, the same on all, was not finite since the last time."""
        self.state.last_loss = loss.item()
        evidence = self.guard.first_bad()
        if evidence is None:
            return
        position = evidence.position
        step = self.state.step - (self.state.position - position) // self.job.global_batch
        cause = likely_cause(self.job, evidence, self.learning_rate(position))
        raise NonFiniteLoss(f"the loss of step {step} is not finite: {cause}", position)
