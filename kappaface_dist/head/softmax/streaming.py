"""The exact margin softmax over all classes, in two passes over chunks of this shard's rows.

With unit embeddings e_i (i = 1..G), centres ŵ_j = w_j / ‖w_j‖, scale s and target logits T_i:

    loss = (1/G) Σ_i [ log( exp(T_i) + Z_i ) − T_i ],     Z_i = Σ_{j≠y_i} exp(s e_i·ŵ_j)
    d loss/d e_i = (1/G) [ s U_i / D_i + (p_i − 1) (dT_i/dt_i) ŵ_{y_i} ]
    d loss/d w_j = h_j − ŵ_j (ŵ_j·h_j),
    h_j = (1/G) [ Σ_i (s Q_ij / D_i) e_i + (1/‖w_j‖) Σ_{i: y_i = j} (p_i − 1) (dT_i/dt_i) e_i ]

with Q_ij = exp(s e_i·ŵ_j) / ‖w_j‖ for j ≠ y_i and 0 for j = y_i, U_i = Σ_j Q_ij w_j,
D_i = exp(T_i) + Z_i and p_i = exp(T_i) / D_i. `negative_sums` is the first pass (Z and U),
`second_pass.py` the second (h). Neither holds more than one chunk of logits: no G x K tensor
exists. The products run on raw centres, so no normalised copy does either; and D is put
on the side of e, so that the second pass can take Q as the first one left it (`LogitCache`).

The target's logit is masked before exp: subtracted afterwards it would take the other classes with
it. All logits are shifted by a constant so that exp of the largest possible one is at most e^64:
the sum over 1e8 classes then stays within fp32's range, and no running maximum is needed, up to
scales of 72; beyond (CurricularFace: 48), `peaks.py`.

Shapes: G images on all ranks, D embedding size, K classes of this shard, R rows of one chunk, S the
rows in use (all K, or those that were sampled).
"""

from typing import NamedTuple

import torch

from kappaface_dist.head.margins.base import Negatives
from kappaface_dist.head.softmax.chunks import Chunks
from kappaface_dist.head.softmax.logit_cache import LogitCache
from kappaface_dist.head.softmax.peaks import lowest_peaks, scale_down
from kappaface_dist.head.softmax.products import multiply
from kappaface_dist.head.softmax.rank_one import nearest_negatives
from kappaface_dist.head.softmax.rows import Rows
from kappaface_dist.head.softmax.settings import Softmax


class NegativeSums(NamedTuple):
    """What the first pass finds in this shard's rows.

    Attributes:
        sum_G: Z exp(−shift).
        sum_GD: U exp(−shift).
        cache: what the second pass can use again.
        parts: each chunk's part of sum_G; empty if they were not to be kept.
        nearest_G: the largest cosine with another class's centre, before any margin; None if it
            was not to be found.
        peak_G: each image's shift in this shard; None where one suits all.
        inverse_S: 1/‖w_j‖, where they were computed for all rows at once.
    """

    sum_G: torch.Tensor
    sum_GD: torch.Tensor
    cache: LogitCache
    parts: list[torch.Tensor]
    nearest_G: torch.Tensor | None
    peak_G: torch.Tensor | None
    inverse_S: torch.Tensor | None = None


def negative_sums(
    embedding_GD: torch.Tensor,
    rows: Rows,
    column_G: torch.Tensor,
    softmax: Softmax,
    *,
    negatives: Negatives | None = None,
    cache_bytes: int = 0,
    find_nearest: bool = False,
    keep_parts: bool = False,
) -> NegativeSums:
    """First pass: what one shard adds to the sums over the other classes.

    Args:
        embedding_GD: unit embeddings.
        column_G: where each image's class is among the rows; −1 if it is on another rank.
        negatives: how the margin changes the other classes' logits.
        cache_bytes: of what the second pass can use again.
    """
    sum_G = embedding_GD.new_zeros(len(embedding_GD))
    sum_GD = torch.zeros_like(embedding_GD)
    nearest_G = torch.full_like(sum_G, -torch.inf) if find_nearest else None
    cache, parts = LogitCache(cache_bytes), []
    peak_G = lowest_peaks(embedding_GD, softmax)
    chunks = Chunks(embedding_GD, rows, softmax)
    operand_GD = embedding_GD.to(softmax.dtype)
    for chunk in chunks:
        keep_GR = cache.place(len(embedding_GD), rows, chunk.first, chunk.last)
        product_GR = chunks.products(operand_GD, chunk)
        if nearest_G is not None:
            chunk_G = nearest_negatives(
                product_GR,
                chunk.operand_inverse_R,
                column_G,
                chunk.first,
                softmax.sub_centres,
            )
            torch.maximum(nearest_G, chunk_G, out=nearest_G)
        before_G = None if peak_G is None else peak_G.clone()
        share_GR, part_XG = chunks.shares(
            product_GR, chunk, column_G, keep_GR, negatives, peak_G, rising=True
        )
        if before_G is not None and peak_G is not None:
            scale_down(before_G, peak_G, sum_G, sum_GD)
            cache.peaks[chunk.first] = peak_G.clone()
        part_G = part_XG.sum(dim=0)
        sum_G += part_G
        if keep_parts:
            parts.append(part_G)
        multiply(share_GR, chunk.operand_RD, softmax.dtype, out=sum_GD, add=True)
    return NegativeSums(sum_G, sum_GD, cache, parts, nearest_G, peak_G)
