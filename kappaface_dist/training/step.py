"""One optimizer step of backbone and head, over one batch or several micro-batches.

With k micro-batches the step is that of the batch of all their images: the gradient is the mean
over the large batch, exchanged between the ranks once. Two ways, equal but for rounding (BatchNorm,
which looks at a batch as a whole, sees a micro-batch either way; ElasticFace's `plus`, which sorts
a batch, only where they are accumulated):

- accumulation: forward and backward of each micro-batch; the head keeps what its second pass needs.
- cached embeddings: a forward pass of all micro-batches without a graph, the head once for all of
  them, then forward and backward again of each (Gao et al., RepL4NLP 2021, "GradCache"). The head
  goes over its centres once instead of k times.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.profiler import record_function

from kappaface_dist.backbones.layers import running_statistics_kept
from kappaface_dist.counter_random import mix64
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import DTYPES, Learner
from kappaface_dist.training.data_parallel import DataParallel, has_cuda_graphs

Phase = Callable[[str], AbstractContextManager]
# Takes a loss, and the micro-batches that the head has seen in the step.
Check = Callable[[torch.Tensor, Sequence[Batch]], None]
PHASES = ("backbone_forward", "head_forward", "backward", "head_step", "exchange", "optimizer")


def train_step(
    learner: Learner,
    batches: Sequence[Batch],
    lr: float,
    position: int,
    check: Check | None = None,
    phase: Phase = record_function,
    backbone_factor: float = 1.0,
    epoch: int = 0,
) -> torch.Tensor:
    """One step; returns the loss before it, the mean over all micro-batches of all ranks.

    Args:
        batches: the micro-batches of this rank.
        lr: the learning rate.
        position: of the first image in the stream: what the backbone draws depends on it and on
            the rank, so resuming needs no saved state.
        check: called with each loss, before anything is changed.
        phase: entered around each part by its name, one of PHASES.
        backbone_factor: times lr, the learning rate of the backbone; at 0 it is frozen.
        epoch: in which the step begins. After the step, the head's `end_epoch` is to be called for
            each epoch that ended in it.
    """
    optimizer, scaler = learner.optimizer, learner.scaler
    frozen = backbone_factor == 0.0
    # Frozen means its running statistics too.
    learner.backbone.train(not frozen)
    for group in optimizer.param_groups:
        group["lr"] = lr * backbone_factor
    optimizer.zero_grad(set_to_none=True)
    if len(batches) > 1 and has_cuda_graphs(learner.config.backbone.compile):
        # Otherwise the first micro-batch's gradient would stay where the next replay writes.
        for parameter in learner.network.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    seed = mix64(learner.config.run.seed, position)
    step = _Step(learner, batches, seed, check, phase, frozen, epoch)
    cached = learner.config.optimizer.cache_embeddings and len(batches) > 1
    loss = step.cached() if cached else step.accumulated()
    loss_scale = scaler.scale(torch.ones_like(loss))
    skips = scaler.is_enabled() and not frozen
    if not skips:
        # Meanwhile the rest of the backbone's gradients is exchanged.
        with phase("head_step"):
            learner.head.step(lr, loss_scale=loss_scale)
    if frozen:
        return loss
    if isinstance(learner.backbone, DataParallel):
        with phase("exchange"):
            learner.backbone.wait_for_gradients()
    with phase("optimizer"):
        scaler.unscale_(optimizer)
        # An infinite limit clips nothing, but tells whether the gradient is finite.
        norm = torch.nn.utils.clip_grad_norm_(
            learner.network.parameters(), learner.config.optimizer.clip_norm or float("inf")
        )
        scaler.step(optimizer)
    if skips:  # an overflow is known only now
        with phase("head_step"):
            learner.head.step(lr, loss_scale=loss_scale, skip=~norm.isfinite())
    scaler.update()
    return loss


def epochs_later(batches: Sequence[Batch], epoch: int) -> torch.Tensor | None:
    """How many epochs later than this one the images of micro-batches belong, one after another, as
    the head takes it; None where they do not say.
    """
    parts = [batch.epoch_B for batch in batches if batch.epoch_B is not None]
    if len(parts) < len(batches):
        return None
    epoch_B = torch.cat(parts)
    later_B = epoch_B - epoch
    # Further ones, in a step over more than 127 epochs, have been seen often enough.
    return torch.where((epoch_B >= 0) & (later_B <= 127), later_B, -1).to(torch.int8)


class _Step:
    """Forward and backward of one step."""

    def __init__(
        self,
        learner: Learner,
        batches: Sequence[Batch],
        seed: int,
        check: Check | None,
        phase: Phase,
        frozen: bool,
        epoch: int,
    ):
        self.learner, self.batches, self.seed, self.check, self.phase = (
            learner,
            batches,
            seed,
            check,
            phase,
        )
        self.frozen, self.epoch = frozen, epoch

    def accumulated(self) -> torch.Tensor:
        """The mean loss, with its gradient in the backbone and in what the head keeps."""
        losses = []
        if len(self.batches) > 1:
            with self.phase("head_forward"):
                self.learner.head.announce(torch.cat([batch.label_B for batch in self.batches]))
        for number, batch in enumerate(self.batches):
            with self._sync(number):
                loss = self._head(self._embed(number), [batch], number + 1)
                loss = loss / len(self.batches)
                with self.phase("backward"):
                    self.learner.scaler.scale(loss).backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def cached(self) -> torch.Tensor:
        """The same from one pass of the head over all micro-batches."""
        with torch.no_grad(), running_statistics_kept(self.learner.network):
            parts = [self._embed(number) for number in range(len(self.batches))]
        embedding = torch.cat(parts).requires_grad_()
        loss = self._head(embedding, self.batches, len(self.batches))
        self.learner.scaler.scale(loss).backward()
        assert embedding.grad is not None
        if self.frozen:
            return loss.detach()
        gradients = embedding.grad.split([len(part) for part in parts])
        for number, gradient_BD in enumerate(gradients):
            with self._sync(number):
                embedding_BD = self._embed(number)
                with self.phase("backward"):
                    embedding_BD.backward(gradient_BD)
        return loss.detach()

    def _embed(self, number: int) -> torch.Tensor:
        """Embeddings of a micro-batch, with the same random choices every time."""
        torch.manual_seed(mix64(self.seed, number, parallel.rank()))
        precision = self.learner.config.precision
        with (
            self.phase("backbone_forward"),
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen),
            torch.autocast(
                self.learner.device.type, DTYPES[precision], enabled=precision != "fp32"
            ),
        ):
            embedding_BD = self.learner.backbone(self.batches[number].image_B3HW)
        # The head learns from the embedding's gradient also where the backbone does not.
        return embedding_BD.requires_grad_() if self.frozen else embedding_BD

    def _head(
        self, embedding_BD: torch.Tensor, batches: Sequence[Batch], num_seen: int
    ) -> torch.Tensor:
        label_B = torch.cat([batch.label_B for batch in batches])
        with self.phase("head_forward"):
            loss = self.learner.head(embedding_BD, label_B, epochs_later(batches, self.epoch))
        if self.check is not None:
            self.check(loss, self.batches[:num_seen])
        return loss

    def _sync(self, number: int) -> AbstractContextManager:
        """DDP exchanges gradients with the last micro-batch alone."""
        backbone = self.learner.backbone
        last = number == len(self.batches) - 1
        if last or not isinstance(backbone, DataParallel):
            return nullcontext()
        return backbone.no_sync()
