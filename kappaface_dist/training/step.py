"""One optimizer step of backbone and head, over one batch or several micro-batches.

With k micro-batches the step is that of the batch of all their images: the gradient is the mean
over the large batch, exchanged between the ranks once. Two ways, equal but for rounding (BatchNorm,
which looks at a batch as a whole, sees a micro-batch either way; ElasticFace's `plus`, which sorts
a batch, only where they are accumulated):

- accumulation: forward and backward of each micro-batch; the head keeps what its second pass needs.
- cached embeddings: a forward pass of all micro-batches without a graph, the head once for all of
  them, then forward and backward again of each (Gao et al., RepL4NLP 2021, "GradCache").
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch.profiler import record_function

from kappaface_dist.backbones.layers import running_statistics_kept
from kappaface_dist.config.datasets import called, datasets
from kappaface_dist.counter_random import mix64
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.head.encoded import see_encoded
from kappaface_dist.head.heads import heads_by_name, images_of_each
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import DTYPES, Learner
from kappaface_dist.training.data_parallel import DataParallel, has_cuda_graphs
from kappaface_dist.training.encoder import encode, follow
from kappaface_dist.training.marks import epochs_later, for_each_label, labels, slots

logger = logging.getLogger(__name__)
Phase = Callable[[str], AbstractContextManager]
# Takes a loss, and the micro-batches that the head has seen in the step.
Check = Callable[[torch.Tensor, Sequence[Batch]], None]
PHASES = (
    *("backbone_forward", "teacher", "encoder", "head_forward"),
    *("backward", "head_step", "exchange", "optimizer"),
)


def train_step(
    learner: Learner,
    batches: Sequence[Batch],
    lr: float,
    position: int,
    check: Check | None = None,
    phase: Phase = record_function,
    backbone_factor: float = 1.0,
    epoch: int | Mapping[str, int] = 0,
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
        epoch: in which the step begins, of several datasets all, or each by its name. After the
            step, a head's `end_epoch` is to be called for each epoch that ended in it.
    """
    optimizer, scaler = learner.optimizer, learner.scaler
    names = heads_by_name(learner.head)
    epochs = dict.fromkeys(names, epoch) if isinstance(epoch, int) else dict(epoch)
    _sample(learner, epochs)
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
    step = _Step(learner, batches, seed, check, phase, frozen, epochs)
    cached = learner.config.optimizer.cache_embeddings and len(batches) > 1
    loss = step.cached() if cached else step.accumulated()
    loss_scale = scaler.scale(torch.ones_like(loss))
    skips = scaler.is_enabled() and not frozen
    if not skips:
        # Meanwhile the rest of the backbone's gradients is exchanged.
        with phase("head_step"):
            learner.head.step(lr, loss_scale=loss_scale)
    if not frozen:
        _update_backbone(learner, loss_scale, lr, phase, skips=skips)
    if learner.encoder is not None:
        with phase("encoder"):
            follow(learner.encoder, learner.network)
            with _autocast(learner):
                embedding_XD = for_each_label(encode(learner.encoder, batches), batches)
            later_X = epochs_later(batches, epochs.values(), images_of_each(learner.head))
            see_encoded(learner.head, embedding_XD, labels(batches), later_X)
    return loss


def _update_backbone(
    learner: Learner, loss_scale: torch.Tensor, lr: float, phase: Phase, *, skips: bool
) -> None:
    """The optimizer's step; with skips also the head's, which an overflow leaves out."""
    optimizer, scaler = learner.optimizer, learner.scaler
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


def _autocast(learner: Learner) -> torch.autocast:
    precision, kind = learner.config.precision, learner.device.type
    return torch.autocast(kind, DTYPES[precision], enabled=precision != "fp32")


def _sample(learner: Learner, epochs: Mapping[str, int]) -> None:
    """Take the share of the classes that the configuration has for each dataset's epoch."""
    owns = datasets(learner.config)
    for name, head in heads_by_name(learner.head).items():
        rate = owns[name].head.sample_rate_in(epochs[name])
        if rate != head.softmax.sample_rate:
            text = f"epoch %d: {called(name) if name else 'head'}.sample_rate is %g from here on"
            logger.info(text, epochs[name], rate)
            head.softmax = replace(head.softmax, sample_rate=rate)


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
        epochs: Mapping[str, int],
    ):
        self.learner, self.batches, self.seed = learner, batches, seed
        self.check, self.phase = check, phase
        self.frozen, self.epochs = frozen, epochs

    def accumulated(self) -> torch.Tensor:
        """The mean loss, with its gradient in the backbone and in what the head keeps."""
        losses = []
        if len(self.batches) > 1:
            with self.phase("head_forward"):
                self.learner.head.announce(labels(self.batches))
        for number, batch in enumerate(self.batches):
            with self._sync(number):
                embedding_BD = self._embed(number)
                loss = self._head(self._for_head(embedding_BD), [batch], number + 1)
                loss = loss / len(self.batches)
                taught = self._taught(embedding_BD, number)
                with self.phase("backward"):
                    self.learner.scaler.scale(loss + taught).backward()
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
                taught = self.learner.scaler.scale(self._taught(embedding_BD, number))
                # Its gradient is gradient_BD, exactly, which is scaled already.
                from_head = (self._for_head(embedding_BD) * gradient_BD).sum()
                with self.phase("backward"):
                    (from_head + taught).backward()
        return loss.detach()

    def _for_head(self, embedding_BD: torch.Tensor) -> torch.Tensor:
        """What the head sees; without the margin's loss the backbone gets no gradient of it."""
        if self.learner.config.distill.margin_loss:
            return embedding_BD
        return embedding_BD.detach().requires_grad_()

    def _taught(self, embedding_BD: torch.Tensor, number: int) -> torch.Tensor:
        """The teacher's part of the step's loss, for a micro-batch."""
        distiller = self.learner.distiller
        if distiller is None or self.frozen:
            return embedding_BD.new_zeros(())
        with self.phase("teacher"):
            batch = self.batches[number]
            loss = distiller.loss(embedding_BD, batch.image_B3HW, batch.stored_BT)
        return loss * (self.learner.config.distill.weight / len(self.batches))

    def _embed(self, number: int) -> torch.Tensor:
        """Embeddings of a micro-batch, with the same random choices every time."""
        torch.manual_seed(mix64(self.seed, number, parallel.rank()))
        with (
            self.phase("backbone_forward"),
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen),
            _autocast(self.learner),
        ):
            embedding_BD = self.learner.backbone(self.batches[number].image_B3HW)
        # The head learns from the embedding's gradient also where the backbone does not.
        return embedding_BD.requires_grad_() if self.frozen else embedding_BD

    def _head(
        self, embedding_BD: torch.Tensor, batches: Sequence[Batch], num_seen: int
    ) -> torch.Tensor:
        with self.phase("head_forward"):
            head = self.learner.head
            later_X = epochs_later(batches, self.epochs.values(), images_of_each(head))
            embedding_XD = for_each_label(embedding_BD, batches)
            loss = head(embedding_XD, labels(batches), later_X, slots(batches))
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
