"""Chunks of a shard's rows, and what a batch makes of one: products, then Q and its part of Z.

The formulas are those of `streaming.py`.
Shapes: G images on all ranks, D embedding size, R rows of one chunk, S the rows in use, X addends.
"""

from collections.abc import Iterator
from functools import cached_property

import torch

from kappaface_dist.head.margins.base import Negatives
from kappaface_dist.head.softmax.products import multiply
from kappaface_dist.head.softmax.rows import Rows, value_dtype
from kappaface_dist.head.softmax.settings import LOG2_E, Softmax, inverse_norms
from kappaface_dist.head.softmax.sub_centres import keep_nearest

# Rows whose lengths are computed at a time.
NORM_ROWS = 1 << 18


def bf16_operand(rows: Rows) -> torch.Tensor:
    """What the products read of a shard that is split or in bf16: bf16, in the first D columns."""
    return rows.weight_KD.view(torch.bfloat16)


def row_lengths(rows: Rows, size: int) -> torch.Tensor:
    """1/‖w_j‖ of the rows in use of such a shard, as the products see them, fp32 [S]."""
    inverse_S = torch.empty(len(rows), device=rows.weight_KD.device)
    for first, last in rows.chunks(NORM_ROWS):
        chunk_RD = rows.select(bf16_operand(rows)[:, :size], first, last)
        inverse_S[first:last] = inverse_norms(chunk_RD, torch.float32)
    return inverse_S


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


class Chunk:
    """Rows first..last-1 of those in use; what is made of their centres is made once.

    Attributes:
        lying_RD: as they lie in the shard.
    """

    def __init__(self, chunks: "Chunks", first: int, last: int, buffer_RD: torch.Tensor | None):
        rows, dtype = chunks.rows, chunks.softmax.dtype
        self.first, self.last = first, last
        self.lying_RD = rows.select(rows.weight_KD, first, last)
        self._chunks, self._rows, self._dtype, self._buffer_RD = chunks, rows, dtype, buffer_RD
        # The products read the values themselves, neither rounded nor their upper halves.
        self._reads_values = not rows.split and dtype == value_dtype(self.lying_RD.dtype)

    def __len__(self) -> int:
        return self.last - self.first

    @cached_property
    def centre_RD(self) -> torch.Tensor:
        """Their values, which an update changes: themselves, or a copy when split or bf16."""
        if self._buffer_RD is None:
            return self._rows.centres(self.lying_RD)
        return self._buffer_RD[: len(self)].copy_(self.lying_RD)

    @cached_property
    def operand_RD(self) -> torch.Tensor:
        """What the matrix products read."""
        if self._reads_values:
            return self.centre_RD
        return self._rows.operand(self.lying_RD, self._dtype)

    @cached_property
    def operand_inverse_R(self) -> torch.Tensor:
        """1/‖w_j‖ of what the products read."""
        inverse_S = self._chunks.inverse_S
        if inverse_S is not None:
            return inverse_S[self.first : self.last]
        return inverse_norms(self.operand_RD, value_dtype(self.lying_RD.dtype))

    @cached_property
    def inverse_R(self) -> torch.Tensor:
        """1/‖w_j‖ of the values."""
        if self._reads_values:
            return self.operand_inverse_R
        return inverse_norms(self.centre_RD, self.centre_RD.dtype)


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

    def __iter__(self) -> Iterator[Chunk]:
        weight_KD, buffer_RD = self.rows.weight_KD, None
        # Fresh memory for each chunk takes a processor longer than what is written to it.
        if weight_KD.dtype == torch.bfloat16 and self.kernels is None:
            shape = self.size, weight_KD.shape[1]
            buffer_RD = weight_KD.new_empty(shape, dtype=value_dtype(weight_KD.dtype))
        for first, last in self.rows.chunks(self.size):
            yield Chunk(self, first, last, buffer_RD)

    @cached_property
    def inverse_S(self) -> torch.Tensor | None:
        """1/‖w_j‖ of all rows, as the products see them; None where each chunk computes its own.

        These would be three launches a chunk and pass, which a GPU may have to wait for. Rows that
        were sampled, or that are whole fp32 numbers, would have to be copied for it.
        """
        rows = self.rows
        lies_in_bf16 = rows.split or rows.weight_KD.dtype == torch.bfloat16
        if self.kernels is None or rows.index_S is not None or not lies_in_bf16:
            return None
        return row_lengths(rows, rows.weight_KD.shape[1])

    def kept(self, kept_GR: torch.Tensor) -> torch.Tensor:
        """Q that the cache has, as the products take it: converted in `products`' place."""
        if self.softmax.dtype != self._product.dtype:
            return kept_GR
        return self._product[: kept_GR.numel()].view_as(kept_GR).copy_(kept_GR)

    def products(self, operand_GD: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        """e_i·w_j [G, R]; operand_GD: e_i in the products' dtype, once for all chunks."""
        shape = len(operand_GD), len(chunk)
        product_GR = self._product[: shape[0] * shape[1]].view(shape)
        multiply(operand_GD, chunk.operand_RD.T, self.softmax.dtype, out=product_GR)
        return product_GR

    def shares(
        self,
        product_GR: torch.Tensor,
        chunk: Chunk,
        column_G: torch.Tensor,
        keep: torch.Tensor | None = None,
        negatives: Negatives | None = None,
        peak_G: torch.Tensor | None = None,
        rising: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(Q [G, R], its part of Z as one or more addends [X, G]) of `products`, overwritten.

        Q goes to keep, too, if that is given.
        """
        softmax, inverse_R, first = self.softmax, chunk.operand_inverse_R, chunk.first
        if self.kernels is None or negatives is not None or peak_G is not None:
            sum_G = exponentiate(
                product_GR, inverse_R, column_G, first, softmax, negatives, peak_G, rising
            )
            if keep is not None:
                keep.copy_(product_GR)
            return product_GR, sum_G[None]
        share_GR = keep
        if share_GR is None:
            share_GR = self._share[: product_GR.numel()].view_as(product_GR)
        limit = softmax.filter_threshold
        part_XG = self.kernels.exponentiate(
            product_GR,
            inverse_R,
            column_G,
            first,
            factor=softmax.scale * LOG2_E,
            shift=softmax.shift * LOG2_E,
            limit=None if limit is None else limit * softmax.scale * LOG2_E,
            out=share_GR,
        )
        return share_GR, part_XG
