"""The first pass of a step: gather the batch, its loss, and the gradient of its embeddings.

The formulas are those of `streaming.py`.
Shapes: B images on this rank, G images on all ranks, D embedding size, K classes of this shard.
"""

from dataclasses import dataclass
from typing import Any

import torch

from kappaface_dist.head.margins import Images, target_logit
from kappaface_dist.head.margins.class_margins import ClassMargins
from kappaface_dist.head.softmax.negligible import choose_tiles
from kappaface_dist.head.softmax.rank_one import RankOne
from kappaface_dist.head.softmax.rows import Rows
from kappaface_dist.head.softmax.second_pass import MicroBatch
from kappaface_dist.head.softmax.settings import Softmax, unit_rows
from kappaface_dist.head.softmax.streaming import LogitCache, negative_sums
from kappaface_dist.parallel import ranks as parallel


def gather_batch(
    unit_BD: torch.Tensor,
    label_B: torch.Tensor,
    dtype: torch.dtype,
    norm_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """All ranks' embeddings, rounded to dtype as the matrix products will, labels, and norms.

    One collective: a label's eight bytes, and those of a norm, travel behind the embedding.
    """
    parts = [unit_BD.to(dtype), label_B.long()[:, None]]
    if norm_B is not None:
        parts.append(norm_B[:, None])
    as_bytes = [part.contiguous().view(torch.uint8) for part in parts]
    gathered = parallel.all_gather_rows(torch.cat(as_bytes, dim=1))
    columns = gathered.split([part.shape[1] for part in as_bytes], dim=1)
    out = [
        column.contiguous().view(part.dtype) for column, part in zip(columns, parts, strict=True)
    ]
    return out[0].to(unit_BD.dtype), out[1][:, 0], out[2][:, 0] if norm_B is not None else None


@dataclass(frozen=True)
class FirstPass:
    """Results of `first_pass`.

    Attributes:
        loss: over all images.
        cosine_G: target cosines of the images whose class is on this rank, otherwise 0.
        batch, gradient_BD: None where nothing is to be learnt.
        norm_gradient_B: d loss / d norm of the embedding, if the margin uses norms.
    """

    loss: torch.Tensor
    cosine_G: torch.Tensor
    batch: MicroBatch | None = None
    gradient_BD: torch.Tensor | None = None
    norm_gradient_B: torch.Tensor | None = None


def first_pass(
    embedding_GD: torch.Tensor,
    rows: Rows,
    column_G: torch.Tensor,
    local_id_G: torch.Tensor,
    owned_G: torch.Tensor,
    *,
    class_margins: ClassMargins,
    norm_G: torch.Tensor | None,
    seed: int,
    softmax: Softmax,
    cache: LogitCache | None,
    rank_one: RankOne,
    learning: bool,
) -> FirstPass:
    """The loss over all shards and, if learning, d loss / d unit embedding of this rank's images.

    Args:
        embedding_GD: unit embeddings of all ranks.
        rows: the rows of this shard that take part, those of the batch's own classes among them.
        column_G: where each image's class is among these rows; −1 if it is on another rank.
        local_id_G: row of each image's class in the whole shard; any row if it is on another rank.
        owned_G: whether the class is on this rank.
        class_margins: the margin; its state is changed here, alike on all ranks.
        norm_G: lengths of the embeddings, for a margin that uses them.
        seed: of this step, equal on all ranks.
        cache: takes what the second pass can use again; None where nothing is to be learnt.
        rank_one: counts the images that are nearest to their own class, when asked to.
    """
    margin = class_margins.margin
    scale = margin.scale
    if len(rows):
        centre_GD, _ = unit_rows(rows.centres_of(local_id_G))
        centre_GD *= owned_G[:, None]
        margin_G = class_margins.margin_K.index_select(0, local_id_G).to(embedding_GD.dtype)
    else:
        centre_GD, margin_G = torch.zeros_like(embedding_GD), torch.zeros_like(embedding_GD[:, 0])
    cosine_G = (embedding_GD * centre_GD).sum(dim=1).where(owned_G, 0.0)
    known_G = cosine_G
    if margin.needs_all_cosines:
        known_G = parallel.all_reduce_sum(cosine_G.clone())
    images = Images(known_G, margin_G, norm_G, seed, learning)
    if learning:
        margin.observe(images, class_margins.state)
    target = target_logit(margin, images, class_margins.state)
    slope_G = target.slope_G.where(owned_G, 0.0)
    negatives = margin.negatives(images, class_margins.state)
    nearest = rank_one.begin_batch(embedding_GD)
    parts: list[torch.Tensor] | None = [] if learning and softmax.skip_mass else None
    sum_G, sum_GD = negative_sums(
        embedding_GD, rows, column_G, softmax, cache, negatives, nearest, parts
    )
    rank_one.end_batch(nearest, cosine_G, owned_G)

    sums_G2 = torch.stack([sum_G, target.logit_G.where(owned_G, 0.0)], dim=1)
    sum_G, logit_G = parallel.all_reduce_sum(sums_G2).unbind(dim=1)
    logit_G = logit_G - softmax.shift
    # log(exp(T) + Z) − T without cancellation, also where p is 1 within rounding. (softplus would
    # do, if it were not cut off at 20.)
    log_odds_G = sum_G.log() - logit_G
    loss_G = torch.logaddexp(log_odds_G, torch.zeros_like(log_odds_G))
    loss = loss_G.mean()
    penalty = margin.penalty(norm_G) if norm_G is not None else None
    if penalty is not None:
        loss = loss + penalty[0].mean()
    if not learning:
        return FirstPass(loss, cosine_G)

    log_denominator_G = logit_G + loss_G
    share_G = -log_odds_G.sigmoid()
    target_slope_G = share_G * slope_G
    gradient_GD = sum_GD.mul_((scale * (-log_denominator_G).exp())[:, None])
    gradient_GD.addcmul_(centre_GD, target_slope_G[:, None])
    norm_gradient_G = None
    if penalty is not None:
        norm_gradient_G = penalty[1].where(owned_G, 0.0)
    if target.norm_slope_G is not None:
        own_G = (share_G * target.norm_slope_G).where(owned_G, 0.0)
        norm_gradient_G = own_G if norm_gradient_G is None else norm_gradient_G + own_G
    gradient_BD, norm_gradient_B = _own_gradients(gradient_GD, norm_gradient_G)
    batch = MicroBatch(
        embedding_GD,
        column_G,
        log_denominator_G,
        target_slope_G,
        torch.ones_like(loss),
        rows,
        cache,
        negatives=negatives,
        tiles=choose_tiles(parts, log_denominator_G, softmax.skip_mass) if parts else None,
    )
    return FirstPass(loss, cosine_G, batch, gradient_BD, norm_gradient_B)


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
        pending: list[MicroBatch],
    ) -> torch.Tensor:
        ctx.result, ctx.pending = result, pending
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        result = ctx.result
        result.batch.factor = factor
        ctx.pending.append(result.batch)
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
    pending: list[MicroBatch],
) -> torch.Tensor:
    """loss, attached to the graph of both; its backward() puts the batch into pending."""
    if result.batch is None:
        return loss
    return _HandToBackward.apply(unit_BD, norm_B, loss, result, pending)
