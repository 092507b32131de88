"""The training loop.

Shapes: B images on this rank, D embedding size, K classes of this shard, H W image size.
"""

import logging
import math

import torch

from kappaface_dist import parallel
from kappaface_dist.build import DTYPES, Job
from kappaface_dist.config_file import to_dict
from kappaface_dist.data.loader import Batch
from kappaface_dist.evaluation.pairs import PairResult, evaluate_pairs
from kappaface_dist.metrics import Meter, Reporter, log_line
from kappaface_dist.optim import schedule_factor
from kappaface_dist.run_state import load_state, save_state
from kappaface_dist.signals import StopSignal

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a job from where its last checkpoint left it.

    Attributes:
        state: how far the run is.
        results: of the last evaluation, by set.
    """

    def __init__(self, job: Job):
        self.job = job
        self.config = job.config
        self.results: dict[str, PairResult] = {}
        self.state = load_state(job)
        self.total_images = job.images_to_read(self.state.step, self.state.position)

    @property
    def finished(self) -> bool:
        return self.job.steps_left(self.state.step, self.state.position) == 0

    def fit(self) -> bool:
        """Train to the end of the run, or until asked to stop; whether the end was reached."""
        steps_left = self.job.steps_left(self.state.step, self.state.position)
        reporter = self._start_reporter(self.state.step + steps_left)
        meter = Meter()
        batches = iter(self.job.loader.batches(self.state.position, steps_left))
        try:
            with StopSignal() as stop:
                for _ in range(steps_left):
                    loss = self.train_step(meter.wait_for(batches))
                    self._advance(meter, reporter)
                    stopping = stop.requested() and not self.finished
                    if self._due(self.config.log.every) or stopping:
                        meter = self._log(loss, meter, reporter)
                    with meter.pause():
                        if self._due(self.config.checkpoint.every) or stopping:
                            self.save(loss)
                        if stopping:
                            logger.info("stopped at step %d, to go on later", self.state.step)
                            return False
                        if self._due(self.config.evaluate.every) and not self.finished:
                            self.evaluate(reporter)
            self.evaluate(reporter)
            return True
        finally:
            self.job.loader.close()
            if reporter is not None:
                reporter.close()

    def train_step(self, batch: Batch) -> torch.Tensor:
        """One optimizer step of backbone and head; returns the loss before it."""
        job, optimizer, scaler = self.job, self.job.optimizer, self.job.scaler
        lr = job.peak_lr * self.lr_factor()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            job.device.type,
            DTYPES[self.config.precision],
            enabled=self.config.precision != "fp32",
        ):
            embedding_BD = job.backbone(batch.image_B3HW)
        loss = job.head(embedding_BD, batch.label_B)
        if job.device.type == "cpu":
            self._check_loss(loss)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        # An infinite limit clips nothing, but tells whether the gradient is finite.
        norm = torch.nn.utils.clip_grad_norm_(
            job.network.parameters(), self.config.optimizer.clip_norm or float("inf")
        )
        loss_scale: torch.Tensor | float = 1.0
        skip = None
        if scaler.is_enabled():
            loss_scale, skip = scaler.scale(torch.ones_like(loss)), ~norm.isfinite()
        scaler.step(optimizer)
        job.head.step(lr, loss_scale=loss_scale, skip=skip)
        scaler.update()
        return loss.detach()

    def lr_factor(self) -> float:
        section = self.config.optimizer
        return schedule_factor(
            section.schedule,
            self.state.position,
            self.total_images,
            section.warmup_epochs * self.job.catalog.num_images,
            section.power,
        )

    def evaluate(self, reporter: Reporter | None) -> None:
        """Verify on every set; collective."""
        self._share_running_statistics()
        numbers = {}
        for name, pairs in self.job.pair_sets.items():
            result = evaluate_pairs(
                self.job.network,
                pairs,
                image_size=self.config.data.image_size,
                batch_size=self.config.data.batch_size,
                device=self.job.device,
            )
            self.results[name] = result
            if result.accuracy is None:
                logger.info("step %d: %s: %s", self.state.step, name, result.note)
            else:
                numbers[f"accuracy/{name}"] = result.accuracy
        if reporter is not None and numbers:
            line = ", ".join(f"{name} {value:.2%}" for name, value in numbers.items())
            reporter.write(self.state.step, numbers, f"step {self.state.step}: {line}")

    def save(self, loss: torch.Tensor) -> None:
        """Write a checkpoint of this step; collective.

        Args:
            loss: of this step: a broken state must not become the last checkpoint.
        """
        self._check_loss(loss)
        self._share_running_statistics()
        save_state(self.job, self.state)

    def _share_running_statistics(self) -> None:
        for buffer in self.job.network.buffers():
            parallel.broadcast_from_rank0(buffer)

    def _due(self, every: int | None) -> bool:
        """Every so many steps, and at the end."""
        return self.finished or (every is not None and self.state.step % every == 0)

    def _advance(self, meter: Meter, reporter: Reporter | None) -> None:
        """Count the step; where an epoch ends with it, so does the window of the statistics."""
        num_images = self.job.catalog.num_images
        epoch = self.state.position // num_images
        self.state.position += self.job.global_batch
        self.state.step += 1
        meter.images += self.job.global_batch
        if self.state.position // num_images > epoch:
            self.job.head.end_epoch()
        if reporter is not None:
            reporter.advance()

    def _log(self, loss: torch.Tensor, meter: Meter, reporter: Reporter | None) -> Meter:
        """Report what happened since the last time; returns an empty meter. Collective."""
        self._check_loss(loss)
        self._check_corrupt_share()
        seconds = meter.seconds()
        self.state.seconds += seconds
        # The slowest rank's wait is what everybody waits for.
        waited = parallel.all_reduce_max(torch.tensor([meter.waited / seconds])).item()
        low, mean, high = self.job.head.margin_summary()
        numbers = {
            "loss": self.state.last_loss,
            "learning_rate": self.job.peak_lr * self.lr_factor(),
            "epoch": self.state.position / self.job.catalog.num_images,
            "images_per_second": meter.images / seconds,
            "data_wait_share": waited,
            "margin_min": low,
            "margin_mean": mean,
            "margin_max": high,
        }
        if reporter is not None:
            left = self.total_images - self.state.position
            reporter.write(self.state.step, numbers, log_line(self.state.step, numbers, left))
        return Meter()

    def _check_loss(self, loss: torch.Tensor) -> None:
        """Raise on every rank if the loss, the same on all, is not finite."""
        self.state.last_loss = loss.item()
        if math.isfinite(self.state.last_loss):
            return
        cause = self.job.head.explain_non_finite() or "the learning rate may be too high"
        raise ValueError(f"the loss is {self.state.last_loss} at step {self.state.step}: {cause}")

    def _check_corrupt_share(self) -> None:
        loader = self.job.loader
        counts = torch.tensor([loader.num_corrupt, loader.num_read], dtype=torch.float64)
        corrupt, read = parallel.all_reduce_sum(counts).tolist()
        limit = self.config.data.max_corrupt_share
        if corrupt > limit * read:
            raise ValueError(
                f"{corrupt:.0f} of {read:.0f} images could not be decoded, more than"
                f" data.max_corrupt_share ({limit:.1%}): check the record, or raise the share"
            )

    def _start_reporter(self, total_steps: int) -> Reporter | None:
        if parallel.rank() != 0:
            return None
        return Reporter(
            self.config.folder,
            self.state.step,
            total_steps,
            tensorboard=self.config.log.tensorboard,
            wandb=self.config.log.wandb,
            run_name=self.config.run.name,
            settings=to_dict(self.config),
        )
