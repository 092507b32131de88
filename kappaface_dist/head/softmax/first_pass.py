"""The first pass of a step: the loss of the gathered batch, and the gradient of its embeddings.

Its collectives are here; the mathematics are those of `streaming.py` and `loss.py`.
Shapes: B images on this rank, G images on all ranks, D embedding size, K classes of this shard.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from kappaface_dist.head.margins import Images, target_logit
from kappaface_dist.head.margins.class_margins import ClassMargins
from kappaface_dist.head.softmax.gathered import GlobalBatch
from kappaface_dist.head.softmax.loss import (
    embedding_gradients,
    image_losses,
    norm_gradients,
    target_cosines,
)
from kappaface_dist.head.softmax.negligible import choose_tiles
from kappaface_dist.head.softmax.peaks import common_peaks
from kappaface_dist.head.softmax.rows import Rows
from kappaface_dist.head.softmax.second_pass import MicroBatch
from kappaface_dist.head.softmax.settings import LOG2_E, Softmax
from kappaface_dist.head.softmax.streaming import negative_sums
from kappaface_dist.head.softmax.tiles import takes, tiled_sums
from kappaface_dist.parallel import ranks as parallel


@dataclass(frozen=True)
class FirstPass:
    """Results of `first_pass`.

    Attributes:
        loss: over all images.
        cosine_G: target cosines of the images whose class is on this rank, otherwise 0.
        nearest_G: as in `NegativeSums`.
        batch, gradient_BD: None where nothing is to be learnt.
        norm_gradient_B: d loss / d norm of the embedding, if the margin uses norms.
    """

    loss: torch.Tensor
    cosine_G: torch.Tensor
    nearest_G: torch.Tensor | None = None
    batch: MicroBatch | None = None
    gradient_BD: torch.Tensor | None = None
    norm_gradient_B: torch.Tensor | None = None


def first_pass(
    batch: GlobalBatch,
    rows: Rows,
    column_G: torch.Tensor,
    class_margins: ClassMargins,
    softmax: Softmax,
    *,
    seed: int,
    number_G: torch.Tensor,
    cache_bytes: int | None,
    find_nearest: bool = False,
) -> FirstPass:
    """The loss over all shards and, if learning, d loss / d unit embedding of this rank's images.

    Args:
        rows: the rows of this shard that take part, those of the batch's own classes among them.
        column_G: where each image's class is among these rows; −1 if it is on another rank.
        class_margins: the margin, with the state that the steps before left; its statistics see
            the images.
        seed: of this step, equal on all ranks.
        number_G: each image's number in the step.
        cache_bytes: what of this pass may be kept for the second; None where nothing is to be
            learnt.
        find_nearest: fill nearest_G.
    """
    margin, state, learning = class_margins.margin, class_margins.state, cache_bytes is not None
    embedding_GD, norm_G, owned_G = batch.embedding_GD, batch.norm_G, batch.owned_G
    centre_GD, cosine_G = target_cosines(embedding_GD, rows, batch.local_id_G, owned_G)
    margin_G = torch.zeros_like(cosine_G)
    if len(rows):
        margin_G = class_margins.margin_K.index_select(0, batch.local_id_G).to(margin_G.dtype)
    known_G = parallel.all_reduce_sum(cosine_G.clone()) if margin.needs_all_cosines else cosine_G
    images = Images(known_G, margin_G, norm_G, seed, number_G, learning)
    target, negatives = target_logit(margin, images, state), margin.negatives(images, state)
    if takes(softmax, rows, embedding_GD):
        sums = tiled_sums(embedding_GD, rows, column_G, softmax, find_nearest=find_nearest)
    else:
        sums = negative_sums(
            embedding_GD,
            rows,
            column_G,
            softmax,
            negatives=negatives,
            cache_bytes=cache_bytes or 0,
            find_nearest=find_nearest,
            keep_parts=learning and softmax.skip_mass > 0,
        )
    shift: torch.Tensor | float = softmax.shift
    peak_G = None
    if sums.peak_G is not None:
        peaks = list(sums.cache.peaks.values())
        peak_G = common_peaks(sums.peak_G, sums.sum_G, sums.sum_GD, sums.parts, peaks)
        shift = peak_G / LOG2_E
    sums_G2 = torch.stack([sums.sum_G, target.logit_G.where(owned_G, 0.0)], dim=1)
    sum_G, logit_G = parallel.all_reduce_sum(sums_G2).unbind(dim=1)
    losses = image_losses(sum_G, logit_G, shift)
    loss = losses.loss_G.mean()
    penalty = margin.penalty(norm_G) if norm_G is not None else None
    if penalty is not None:
        loss = loss + penalty[0].mean()
    result = FirstPass(loss, cosine_G, sums.nearest_G)
    if not learning:
        return result
    if class_margins.sees_batches:
        class_margins.see(embedding_GD, cosine_G, batch.local_id_G, owned_G, batch.marks)

    log_denominator_G = losses.log_denominator_G
    target_slope_G = losses.share_G * target.slope_G.where(owned_G, 0.0)
    gradient_BD, norm_gradient_B = _own_gradients(
        embedding_gradients(
            sums.sum_GD, centre_GD, log_denominator_G, target_slope_G, margin.scale
        ),
        norm_gradients(
            losses.share_G, target.norm_slope_G, None if penalty is None else penalty[1], owned_G
        ),
    )
    tiles = None
    if sums.parts:
        tiles = choose_tiles(sums.parts, log_denominator_G, softmax.skip_mass)
    micro_batch = MicroBatch(
        embedding_GD,
        column_G,
        log_denominator_G,
        target_slope_G,
        torch.ones_like(loss),
        rows,
        sums.cache,
        images=images,
        negatives=negatives,
        peak_G=peak_G,
        tiles=tiles,
        inverse_S=sums.inverse_S,
    )
    return replace(
        result, batch=micro_batch, gradient_BD=gradient_BD, norm_gradient_B=norm_gradient_B
    )


def _own_gradients(
    gradient_GD: torch.Tensor, norm_gradient_G: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The mean's gradients for this rank's images, summed over ranks in one collective."""
    num_images = len(gradient_GD)
    if norm_gradient_G is None:
        return parallel.reduce_scatter_rows(gradient_GD.div_(num_images)), None
    joined_GX = torch.cat([gradient_GD, norm_gradient_G[:, None]], dim=1)
    joined_BX = parallel.reduce_scatter_rows(joined_GX.div_(num_images))
    return joined_BX[:, :-1], joined_BX[:, -1]


class _HandToBackward(torch.autograd.Function):
    """The loss forward; backward, the gradients that the first pass has computed already."""

    @staticmethod
    def forward(
        ctx: Any,
        unit_BD: torch.Tensor,
        norm_B: torch.Tensor | None,
        loss: torch.Tensor,
        result: FirstPass,
        hand_over: Callable[[MicroBatch], None],
    ) -> torch.Tensor:
        ctx.result, ctx.hand_over = result, hand_over
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        result = ctx.result
        ctx.hand_over(replace(result.batch, factor=factor))
        # DDP takes the mean of the ranks' gradients; the loss is a mean over all their images.
        factor = factor * parallel.world_size()
        norm_B = result.norm_gradient_B
        norm_gradient_B = None if norm_B is None else norm_B * factor
        return result.gradient_BD * factor, norm_gradient_B, None, None, None


def hand_to_backward(
    unit_BD: torch.Tensor,
    norm_B: torch.Tensor | None,
    loss: torch.Tensor,
    result: FirstPass,
    hand_over: Callable[[MicroBatch], None],
) -> torch.Tensor:
    """loss, attached to the graph of both; its backward() hands over the batch with its factor.

    A backward pass returns gradients alone, so the batch cannot be returned.
    """
    if result.batch is None:
        return loss
    return _HandToBackward.apply(unit_BD, norm_B, loss, result, hand_over)
