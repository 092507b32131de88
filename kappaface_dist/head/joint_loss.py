"""The loss of one head or of several on the same embeddings, at one head's number of collectives.

Of a micro-batch each head has images of its own, as many on every rank and in every step. The loss
is Σ over the heads of weight · share · (mean loss of the head's images), share being that of its
images: each image counts by its head's weight, and one head with weight 1 has the mean of all.
Shapes: B images on this rank, G images on all N ranks, D embedding size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from kappaface_dist.head.margins import Margin
from kappaface_dist.head.margins.base import Marks
from kappaface_dist.head.margins.class_margins import ClassMargins
from kappaface_dist.head.micro_batches import MicroBatches
from kappaface_dist.head.softmax.exchange import Pass, run_together
from kappaface_dist.head.softmax.first_pass import FirstPass
from kappaface_dist.head.softmax.gathered import (
    Counts,
    GlobalBatch,
    gather_batch,
    join_images,
    split_images,
)
from kappaface_dist.head.softmax.settings import Softmax
from kappaface_dist.parallel import ranks as parallel

HandOver = Callable[[torch.Tensor], None]


class OneHead(Protocol):
    """What is asked of a head, `PartialFC`."""

    margin: Margin
    class_margins: ClassMargins
    classes: range
    softmax: Softmax
    micro_batches: MicroBatches
    state_dtype: torch.dtype

    def begin(self, batch: GlobalBatch, *, learning: bool) -> Pass[FirstPass]:
        """The first pass over the head's images."""


@dataclass(frozen=True)
class Embedded:
    """A micro-batch, or several, of this rank, for the heads that learn from it.

    Attributes:
        epoch_B, slot_B: as in `PartialFC.forward`.
    """

    embedding_BD: torch.Tensor
    label_B: torch.Tensor
    epoch_B: torch.Tensor | None = None
    slot_B: torch.Tensor | None = None


def joint_loss(
    heads: Sequence[OneHead],
    images: Embedded,
    counts: Counts = None,
    weights: Sequence[float] = (1.0,),
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss, a scalar that is the same on every rank, and each head's own, unweighted.

    Collective: one all-gather, one all-reduce, one reduce-scatter, whatever the number of heads.

    Args:
        counts: images of each head in a micro-batch.
        weights: of each head's images.
    """
    embedding_BD, label_B = images.embedding_BD.to(heads[0].state_dtype), images.label_B
    unit_BD = F.normalize(embedding_BD, dim=1)
    learning = unit_BD.requires_grad
    norm_B = embedding_BD.norm(dim=1) if any(head.margin.uses_norm for head in heads) else None
    shares = [1.0] if counts is None else [count / sum(counts) for count in counts]
    factors = [weight * share for weight, share in zip(weights, shares, strict=True)]
    with torch.no_grad():
        batches = gather_batch(
            unit_BD,
            label_B,
            _marks(heads, images, counts, learning=learning),
            heads[0].softmax.dtype,
            [head.classes for head in heads],
            norm_B,
            counts,
        )
        passes = zip(heads, batches, strict=True)
        results = run_together([head.begin(own, learning=learning) for head, own in passes])
        losses = [result.loss for result in results]
        loss = torch.stack([f * own for f, own in zip(factors, losses, strict=True)]).sum()
        if not learning:
            return loss, losses
        gradient_BD, norm_gradient_B = _own_gradients(results, factors, counts)

    def hand_over(factor: torch.Tensor) -> None:
        for head, result, share in zip(heads, results, factors, strict=True):
            assert result.batch is not None
            head.micro_batches.pending.append(replace(result.batch, factor=factor * share))

    # So that a gradient is not held until the step.
    results = [replace(r, gradient_GD=None, norm_gradient_G=None) for r in results]
    loss = _HandToBackward.apply(unit_BD, norm_B, loss, gradient_BD, norm_gradient_B, hand_over)
    return loss, losses


def announce_together(
    heads: Sequence[OneHead], label_X: torch.Tensor, counts: Counts = None
) -> None:
    """Draw one sample of classes of each head for all losses of a step, from their labels in order.

    Collective: one all-gather, if one of them samples.
    """
    if all(head.softmax.sample_rate == 1.0 for head in heads):
        gathered = [label_X] * len(heads)
    else:
        gathered = split_images(parallel.all_gather_rows(label_X.long()), counts)
    for head, label_Y in zip(heads, gathered, strict=True):
        head.micro_batches.announce(label_Y, head.softmax.sample_rate)


def _marks(
    heads: Sequence[OneHead], images: Embedded, counts: Counts, *, learning: bool
) -> list[Marks]:
    """Of each head's images."""
    labels = split_images(images.label_B, counts)
    nothing: list[torch.Tensor | None] = [None] * len(heads)
    epochs, slots = (
        nothing if given is None else split_images(given, counts)
        for given in (images.epoch_B, images.slot_B)
    )
    return [
        head.class_margins.marks(label_X, epoch_X, slot_X, learning=learning)
        for head, label_X, epoch_X, slot_X in zip(heads, labels, epochs, slots, strict=True)
    ]


def _own_gradients(
    results: Sequence[FirstPass], factors: Sequence[float], counts: Counts
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The loss's gradients for this rank's images, summed over the ranks in one collective."""
    parts = []
    uses_norm = any(result.norm_gradient_G is not None for result in results)
    for result, factor in zip(results, factors, strict=True):
        part_GX, norm_gradient_G = result.gradient_GD, result.norm_gradient_G
        assert part_GX is not None
        if uses_norm:
            if norm_gradient_G is None:
                norm_gradient_G = torch.zeros_like(part_GX[:, 0])
            part_GX = torch.cat([part_GX, norm_gradient_G[:, None]], dim=1)
        parts.append(part_GX.div_(len(part_GX) / factor))
    joined_BX = parallel.reduce_scatter_rows(join_images(parts, counts))
    return (joined_BX[:, :-1], joined_BX[:, -1]) if uses_norm else (joined_BX, None)


class _HandToBackward(torch.autograd.Function):
    """The loss forward; backward, the gradients that the first pass has computed already.

    A backward pass returns gradients alone, so what the second pass needs is handed over.
    """

    @staticmethod
    def forward(
        ctx: Any,
        unit_BD: torch.Tensor,
        norm_B: torch.Tensor | None,
        loss: torch.Tensor,
        gradient_BD: torch.Tensor,
        norm_gradient_B: torch.Tensor | None,
        hand_over: HandOver,
    ) -> torch.Tensor:
        ctx.gradients, ctx.hand_over = (gradient_BD, norm_gradient_B), hand_over
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ctx.hand_over(factor)
        # DDP takes the mean of the ranks' gradients; the loss is a mean over all their images.
        factor = factor * parallel.world_size()
        gradients = [None if part is None else part * factor for part in ctx.gradients]
        return *gradients, None, None, None, None
