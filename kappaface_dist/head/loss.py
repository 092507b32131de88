"""The first pass of a step: gather the batch, its loss, and the gradient of its embeddings.

The formulas are those of `streaming_softmax.py`.
Shapes: B images on this rank, G images on all ranks, D embedding size, K classes of this shard.
"""

from dataclasses import dataclass
from typing import Any

import torch

from kappaface_dist import parallel
from kappaface_dist.head.margins import Margin
from kappaface_dist.head.rows import Rows
from kappaface_dist.head.second_pass import MicroBatch
from kappaface_dist.head.streaming_softmax import LogitCache, Softmax, negative_sums, unit_rows


def gather_batch(
    unit_BD: torch.Tensor, label_B: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """All ranks' embeddings, rounded to dtype as the matrix products will, and their labels.

    One collective: a label's eight bytes travel behind its embedding.
    """
    embedding_bytes = unit_BD.to(dtype).contiguous().view(torch.uint8)
    label_bytes = label_B.long()[:, None].contiguous().view(torch.uint8)
    gathered = parallel.all_gather_rows(torch.cat([embedding_bytes, label_bytes], dim=1))
    embedding_GD = gathered[:, :-8].contiguous().view(dtype).to(unit_BD.dtype)
    return embedding_GD, gathered[:, -8:].contiguous().view(torch.int64)[:, 0]


@dataclass(frozen=True)
class FirstPass:
    """Results of `first_pass`; batch and gradient_BD are None where nothing is to be learnt."""

    loss: torch.Tensor
    batch: MicroBatch | None = None
    gradient_BD: torch.Tensor | None = None


def first_pass(
    embedding_GD: torch.Tensor,
    rows: Rows,
    column_G: torch.Tensor,
    local_id_G: torch.Tensor,
    owned_G: torch.Tensor,
    *,
    margin: Margin,
    margin_K: torch.Tensor,
    softmax: Softmax,
    cache: LogitCache | None,
    learning: bool,
) -> FirstPass:
    """The loss over all shards and, if learning, d loss / d unit embedding of this rank's images.

    Args:
        embedding_GD: unit embeddings of all ranks.
        rows: the rows of this shard that take part, those of the batch's own classes among them.
        column_G: where each image's class is among these rows; −1 if it is on another rank.
        local_id_G: row of each image's class in the whole shard; any row if it is on another rank.
        owned_G: whether the class is on this rank.
        cache: takes what the second pass can use again; None where nothing is to be learnt.
    """
    scale, num_images = margin.scale, len(embedding_GD)
    sum_G, sum_GD = negative_sums(embedding_GD, rows, column_G, softmax, cache)
    if len(rows):
        centre_GD, _ = unit_rows(rows.centres_of(local_id_G))
        margin_G = margin_K.index_select(0, local_id_G).to(embedding_GD.dtype)
        cosine_G = (embedding_GD * centre_GD).sum(dim=1)
        logit_G, slope_G = margin.target_logit(cosine_G, margin_G)
        centre_GD *= owned_G[:, None]
        logit_G = torch.where(owned_G, logit_G, 0.0)
        slope_G = torch.where(owned_G, slope_G, 0.0)
    else:
        centre_GD, logit_G, slope_G = torch.zeros_like(embedding_GD), sum_G, sum_G

    sum_G, logit_G = parallel.all_reduce_sum(torch.stack([sum_G, logit_G], dim=1)).unbind(dim=1)
    logit_G = logit_G - softmax.shift
    # log(exp(T) + Z) − T without cancellation, also where p is 1 within rounding. (softplus would
    # do, if it were not cut off at 20.)
    log_odds_G = sum_G.log() - logit_G
    loss_G = torch.logaddexp(log_odds_G, torch.zeros_like(log_odds_G))
    loss = loss_G.mean()
    if not learning:
        return FirstPass(loss)

    log_denominator_G = logit_G + loss_G
    target_slope_G = -log_odds_G.sigmoid() * slope_G
    gradient_GD = sum_GD.mul_((scale * (-log_denominator_G).exp())[:, None])
    gradient_GD.addcmul_(centre_GD, target_slope_G[:, None])
    gradient_BD = parallel.reduce_scatter_rows(gradient_GD.div_(num_images))
    batch = MicroBatch(
        embedding_GD,
        column_G,
        log_denominator_G,
        target_slope_G,
        torch.ones_like(loss),
        rows,
        cache,
    )
    return FirstPass(loss, batch, gradient_BD)


class _HandToBackward(torch.autograd.Function):
    """The loss forward; backward, the gradient that the first pass has computed already."""

    @staticmethod
    def forward(
        ctx: Any,
        unit_BD: torch.Tensor,
        loss: torch.Tensor,
        result: FirstPass,
        pending: list[MicroBatch],
    ) -> torch.Tensor:
        ctx.result, ctx.pending = result, pending
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ctx.result.batch.factor = factor
        ctx.pending.append(ctx.result.batch)
        # DDP takes the mean of the ranks' gradients; the loss is a mean over all their images.
        return ctx.result.gradient_BD * (factor * parallel.world_size()), None, None, None


def hand_to_backward(
    unit_BD: torch.Tensor, loss: torch.Tensor, result: FirstPass, pending: list[MicroBatch]
) -> torch.Tensor:
    """loss, attached to the graph of unit_BD; its backward() puts the batch into pending."""
    if result.batch is None:
        return loss
    return _HandToBackward.apply(unit_BD, loss, result, pending)
