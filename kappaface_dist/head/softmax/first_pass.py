"""The first pass of a step: the loss of a head's gathered images, and the gradient of their
embeddings.

It yields what is to be exchanged with the other ranks (`exchange.py`); the mathematics are those of
`streaming.py` and `loss.py`.
Shapes: G images on all ranks, D embedding size, K classes of this shard.
"""

from dataclasses import dataclass

import torch

from kappaface_dist.head.margins import Images, target_logit
from kappaface_dist.head.margins.class_margins import ClassMargins
from kappaface_dist.head.softmax.exchange import COSINES, NEAREST, PEAKS, SUMS, Exchange, Pass
from kappaface_dist.head.softmax.gathered import GlobalBatch
from kappaface_dist.head.softmax.loss import (
    embedding_gradients,
    image_losses,
    norm_gradients,
    target_cosines,
)
from kappaface_dist.head.softmax.negligible import choose_tiles
from kappaface_dist.head.softmax.peaks import to_common_peaks
from kappaface_dist.head.softmax.rank_one import RankOne
from kappaface_dist.head.softmax.rows import Rows
from kappaface_dist.head.softmax.second_pass import MicroBatch
from kappaface_dist.head.softmax.settings import LOG2_E, Softmax
from kappaface_dist.head.softmax.streaming import negative_sums
from kappaface_dist.head.softmax.sub_centres import nearest_targets
from kappaface_dist.head.softmax.tiles import takes, tiled_sums


@dataclass(frozen=True)
class FirstPass:
    """Results of `first_pass`.

    Attributes:
        loss: over all images.
        batch, gradient_GD: None where nothing is to be learnt. gradient_GD is this shard's part of
            d (sum of the images' losses) / d unit embedding.
        norm_gradient_G: the same by the norm of the embedding, if the margin uses norms.
    """

    loss: torch.Tensor
    batch: MicroBatch | None = None
    gradient_GD: torch.Tensor | None = None
    norm_gradient_G: torch.Tensor | None = None


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
    rank_one: RankOne,
) -> Pass[FirstPass]:
    """The loss over all shards and, if learning, this one's part of the embeddings' gradient.

    Args:
        rows: the rows of this shard that take part, those of the batch's own classes among them.
        column_G: where each image's class is among these rows (its first, with sub-centres); −1
            if it is on another rank.
        class_margins: the margin, with the state that the steps before left; its statistics see
            the images.
        seed: of this step, equal on all ranks.
        number_G: each image's number in the step.
        cache_bytes: what of this pass may be kept for the second; None where nothing is to be
            learnt.
        rank_one: counts the images, if it is active.
    """
    margin, state, learning = class_margins.margin, class_margins.state, cache_bytes is not None
    embedding_GD, norm_G, owned_G = batch.embedding_GD, batch.norm_G, batch.owned_G
    row_G = batch.local_id_G
    if (sub_centres := softmax.sub_centres) > 1:
        nearest_G = nearest_targets(embedding_GD, rows, row_G, sub_centres)
        row_G = row_G * sub_centres + nearest_G
        column_G = torch.where(owned_G, column_G + nearest_G, -1)
    centre_GD, cosine_G = target_cosines(embedding_GD, rows, row_G, owned_G)
    margin_G = torch.zeros_like(cosine_G)
    if len(rows):
        margin_G = class_margins.margin_K.index_select(0, batch.local_id_G).to(margin_G.dtype)
    known_G = cosine_G
    if margin.needs_all_cosines:
        known_G = yield Exchange(COSINES, cosine_G.clone())
    images = Images(known_G, margin_G, norm_G, seed, number_G, learning)
    target, negatives = target_logit(margin, images, state), margin.negatives(images, state)
    if takes(softmax, rows, embedding_GD):
        sums = tiled_sums(embedding_GD, rows, column_G, softmax, find_nearest=rank_one.active)
    else:
        sums = negative_sums(
            embedding_GD,
            rows,
            column_G,
            softmax,
            negatives=negatives,
            cache_bytes=cache_bytes or 0,
            find_nearest=rank_one.active,
            keep_parts=learning and softmax.skip_mass > 0,
        )
    shift: torch.Tensor | float = softmax.shift
    peak_G = None
    if sums.peak_G is not None:
        peak_G = yield Exchange(PEAKS, sums.peak_G.clone())
        peaks = list(sums.cache.peaks.values())
        to_common_peaks(peak_G, sums.peak_G, sums.sum_G, sums.sum_GD, sums.parts, peaks)
        shift = peak_G / LOG2_E
    parts = [sums.sum_G, target.logit_G.where(owned_G, 0.0)]
    trust = class_margins.trust
    parts += [] if trust is None else [cosine_G]
    sum_G, logit_G, *cosines = (yield Exchange(SUMS, torch.stack(parts, dim=1))).unbind(dim=1)
    losses = image_losses(sum_G, logit_G, shift)
    penalty = margin.penalty(norm_G) if norm_G is not None else None
    unweighted_G, marks = losses.log_denominator_G, batch.marks
    if trust is not None and learning:
        trust_G = trust.weights(cosines[0])
        if trust.loss:
            losses = losses.weighted(trust_G)
            penalty = penalty and (penalty[0] * trust_G, penalty[1] * trust_G)
        if trust.statistics:  # what is below 0 does not count
            marks = marks | {"epoch": marks["epoch"].where(trust_G >= 0.5, -1)}
    loss = losses.loss_G.mean()
    if penalty is not None:
        loss = loss + penalty[0].mean()
    if sums.nearest_G is not None:
        nearest_G = yield Exchange(NEAREST, sums.nearest_G)
        rank_one.count(nearest_G, cosine_G, owned_G)
    if not learning:
        return FirstPass(loss)
    if class_margins.chosen is not None:
        class_margins.chosen.add(row_G, owned_G)
    if class_margins.sees_batches:
        class_margins.see(embedding_GD, cosine_G, batch.local_id_G, owned_G, marks)

    log_denominator_G = losses.log_denominator_G
    target_slope_G = losses.share_G * target.slope_G.where(owned_G, 0.0)
    gradient_GD = embedding_gradients(
        sums.sum_GD, centre_GD, log_denominator_G, target_slope_G, margin.scale
    )
    norm_gradient_G = norm_gradients(
        losses.share_G, target.norm_slope_G, None if penalty is None else penalty[1], owned_G
    )
    tiles = None
    if sums.parts:
        tiles = choose_tiles(sums.parts, unweighted_G, softmax.skip_mass)
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
    return FirstPass(loss, micro_batch, gradient_GD, norm_gradient_G)
