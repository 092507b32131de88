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

from collections.abc import Iterator
from typing import NamedTuple

import torch

from kappaface_dist.head.margins.base import Negatives
from kappaface_dist.head.softmax.logit_cache import LogitCache
from kappaface_dist.head.softmax.peaks import lowest_peaks, scale_down
from kappaface_dist.head.softmax.products import multiply
from kappaface_dist.head.softmax.rank_one import nearest_negatives
from kappaface_dist.head.softmax.rows import Rows
from kappaface_dist.head.softmax.settings import LOG2_E, Softmax, inverse_norms
from kappaface_dist.head.softmax.sub_centres import keep_nearest


def mask_targets(
    logit_GR: torch.Tensor, column_G: torch.Tensor, first: int, sub_centres: int = 1
) -> None:
    """logit[i, column_i − first] = −∞ in place, where that column lies in this chunk; with
    sub-centres all columns of its class.

    No boolean indexing: on a GPU that would wait for the device.
    """
    if sub_centres > 1:
        start_G = column_G - column_G.remainder(sub_centres)  # −1 stays below 0
        for number in range(sub_centres):
            mask_targets(logit_GR, start_G + number, first)
        return
    outside_G = (column_G < first) | (column_G >= first + logit_GR.shape[1])
    index_G1 = (column_G - first).clamp_(0, logit_GR.shape[1] - 1)[:, None]
    kept_G1 = logit_GR.gather(1, index_G1)
    logit_GR.scatter_(1, index_G1, kept_G1.masked_fill_(~outside_G[:, None], -torch.inf))


def exponentiate(
    product_GR: torch.Tensor,
    inverse_R: torch.Tensor,
    column_G: torch.Tensor,
    first: int,
    softmax: Softmax,
    negatives: Negatives | None = None,
    peak_G: torch.Tensor | None = None,
    rising: bool = False,
) -> torch.Tensor:
    """e_i·w_j -> Q_ij exp(−shift), in place; returns Σ_j exp(s e_i·ŵ_j − shift) of this chunk, [G].

    Where the margin changes the logits, Q is multiplied with the derivative of that change.

    All that happens to a negative's logit happens here, for both passes.

    Args:
        peak_G: the shift of each image in place of one for all; rising: this chunk may raise it.
    """
    slope_GR = None
    product_GR.mul_(inverse_R * (softmax.scale * LOG2_E))
    if softmax.sub_centres > 1:
        keep_nearest(product_GR, softmax.sub_centres)
    if softmax.filter_threshold is not None:
        limit = softmax.filter_threshold * softmax.scale * LOG2_E
        product_GR.masked_fill_(product_GR > limit, -torch.inf)
    if negatives is not None:
        slope_GR = negatives.transform(product_GR.div_(LOG2_E))
        product_GR.mul_(LOG2_E)
    mask_targets(product_GR, column_G, first, softmax.sub_centres)
    if peak_G is not None:
        if rising:
            torch.maximum(peak_G, product_GR.amax(dim=1), out=peak_G)
        product_GR.sub_(peak_G[:, None])
    elif softmax.shift:
        product_GR.sub_(softmax.shift * LOG2_E)
    sum_G = product_GR.exp2_().sum(dim=1)
    product_GR.mul_(inverse_R)
    if slope_GR is not None:
        product_GR.mul_(slope_GR)
    return sum_G


class Chunks:
    """Iterates over chunks of rows and computes Q of each in buffers that it reuses."""

    def __init__(self, embedding_GD: torch.Tensor, rows: Rows, softmax: Softmax):
        self.rows, self.softmax = rows, softmax
        self.size = min(softmax.chunk_rows(embedding_GD), max(1, len(rows)))
        # The kernel that writes Q has no maximum over sub-centres.
        self.kernels = None
        if softmax.sub_centres == 1:
            self.kernels = softmax.kernels(embedding_GD.device)
        self._product = embedding_GD.new_empty(len(embedding_GD) * self.size)
        self._share = self._product
        if self.kernels is not None:
            self._share = torch.empty_like(self._product, dtype=torch.bfloat16)

    def __iter__(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(first, last, centres as they lie [R, D])."""
        for first, last in self.rows.chunks(self.size):
            yield first, last, self.rows.select(self.rows.weight_KD, first, last)

    def products(
        self, embedding_GD: torch.Tensor, operand_RD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(e_i·w_j [G, R], 1/‖w_j‖ [R])."""
        inverse_R = inverse_norms(operand_RD, self._product.dtype)
        shape = (len(embedding_GD), len(operand_RD))
        product_GR = self._product[: shape[0] * shape[1]].view(shape)
        multiply(embedding_GD, operand_RD.T, self.softmax.dtype, out=product_GR)
        return product_GR, inverse_R

    def shares(
        self,
        product_GR: torch.Tensor,
        inverse_R: torch.Tensor,
        column_G: torch.Tensor,
        first: int,
        keep: torch.Tensor | None = None,
        negatives: Negatives | None = None,
        peak_G: torch.Tensor | None = None,
        rising: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(Q [G, R], its part of Z [G]) of `products`, which are overwritten.

        Q goes to keep, too, if that is given.
        """
        softmax = self.softmax
        if self.kernels is None or negatives is not None or peak_G is not None:
            sum_G = exponentiate(
                product_GR, inverse_R, column_G, first, softmax, negatives, peak_G, rising
            )
            if keep is not None:
                keep.copy_(product_GR)
            return product_GR, sum_G
        share_GR = keep
        if share_GR is None:
            share_GR = self._share[: product_GR.numel()].view_as(product_GR)
        limit = softmax.filter_threshold
        sum_G = self.kernels.exponentiate(
            product_GR,
            inverse_R,
            column_G,
            first,
            factor=softmax.scale * LOG2_E,
            shift=softmax.shift * LOG2_E,
            limit=None if limit is None else limit * softmax.scale * LOG2_E,
            out=share_GR,
        )
        return share_GR, sum_G


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
    for first, last, chunk_RD in chunks:
        operand_RD = rows.operand(chunk_RD, softmax.dtype)
        keep_GR = cache.place(len(embedding_GD), rows, first, last)
        product_GR, inverse_R = chunks.products(embedding_GD, operand_RD)
        if nearest_G is not None:
            chunk_G = nearest_negatives(product_GR, inverse_R, column_G, first, softmax.sub_centres)
            torch.maximum(nearest_G, chunk_G, out=nearest_G)
        before_G = None if peak_G is None else peak_G.clone()
        share_GR, part_G = chunks.shares(
            product_GR, inverse_R, column_G, first, keep_GR, negatives, peak_G, rising=True
        )
        if before_G is not None and peak_G is not None:
            scale_down(before_G, peak_G, sum_G, sum_GD)
            cache.peaks[first] = peak_G.clone()
        sum_G += part_G
        if keep_parts:
            parts.append(part_G)
        multiply(share_GR, operand_RD, softmax.dtype, out=sum_GD, add=True)
    return NegativeSums(sum_G, sum_GD, cache, parts, nearest_G, peak_G)
