"""The exact margin softmax over all classes, in two passes over chunks of this shard's rows.

With unit embeddings e_i (i = 1..G), centres ŵ_j = w_j / ‖w_j‖, scale s and target logits T_i:

    loss = (1/G) Σ_i [ log( exp(T_i) + Z_i ) − T_i ],     Z_i = Σ_{j≠y_i} exp(s e_i·ŵ_j)
    d loss/d e_i = (1/G) [ s U_i / D_i + (p_i − 1) (dT_i/dt_i) ŵ_{y_i} ]
    d loss/d ŵ_j = (1/G) Σ_i c_ij e_i,   c_ij = s exp(s e_i·ŵ_j) / D_i,  except at the target
    d loss/d w_j = (g_j − ŵ_j (ŵ_j·g_j)) / ‖w_j‖,   g_j = d loss/d ŵ_j

with U_i = Σ_{j≠y_i} exp(s e_i·ŵ_j) ŵ_j, D_i = exp(T_i) + Z_i, p_i = exp(T_i) / D_i, and
c_{i y_i} = (p_i − 1) dT_i/dt_i. `negative_sums` is the first pass (Z and U), `centre_gradients` the
second. Neither holds more than one chunk of logits: no G x K tensor exists.

The target's logit is masked before exp: subtracted afterwards it would take the other classes with
it. All logits are shifted by a constant so that exp of the largest possible one is at most e^64:
the sum over 1e8 classes then stays within fp32's range, and no running maximum is needed.

Shapes: G images on all ranks, D embedding size, K classes of this shard, R rows of one chunk, S the
rows in use (all K, or those that were sampled).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

# The largest exponent: e^64 times 1e8 classes is 6e35, within fp32's 3.4e38.
LARGEST_EXPONENT = 64.0
# Beyond this the shift would push the logits of orthogonal centres below fp32's smallest number.
LARGEST_SCALE = 128.0
# One chunk of logits takes about this many bytes on the CPU, so that it stays in a core's cache.
CPU_CHUNK_BYTES = 4 << 20
GPU_CHUNK_BYTES = 256 << 20


def exponent_shift(scale: float) -> float:
    """The constant c in exp(logit − c)."""
    return max(0.0, scale - LARGEST_EXPONENT)


def chunk_rows(embedding_GD: torch.Tensor) -> int:
    """Rows per chunk, from the size of the batch and of the cache."""
    budget = CPU_CHUNK_BYTES if embedding_GD.device.type == "cpu" else GPU_CHUNK_BYTES
    rows = budget // (embedding_GD.element_size() * max(embedding_GD.shape))
    return max(128, rows // 128 * 128)


@dataclass
class Rows:
    """The rows of the shard that a step uses: all of them, or those of an index.

    Attributes:
        weight_KD: the shard's raw centres.
        index_S: sorted row numbers, or None for all rows.
    """

    weight_KD: torch.Tensor
    index_S: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.weight_KD if self.index_S is None else self.index_S)

    def chunks(self, size: int) -> Iterator[tuple[int, int]]:
        for first in range(0, len(self), size):
            yield first, min(first + size, len(self))

    def select(self, tensor_KX: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Rows first..last-1 of a tensor with a row per class: a view, or a copy when sampled."""
        if self.index_S is None:
            return tensor_KX[first:last]
        return tensor_KX.index_select(0, self.index_S[first:last])

    def put_back(
        self, tensor_KX: torch.Tensor, first: int, last: int, rows_RX: torch.Tensor
    ) -> None:
        """Write what `select` gave, after it was changed in place."""
        if self.index_S is not None:
            tensor_KX.index_copy_(0, self.index_S[first:last], rows_RX)


def multiply(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a @ b with operands rounded to dtype, products summed and returned in a's own type."""
    if dtype == a.dtype:
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a.to(dtype), b.to(dtype), out_dtype=a.dtype)
    # The CPU has no bf16 product with fp32 output: round the operands as the GPU would.
    return a.to(dtype).to(a.dtype) @ b.to(dtype).to(a.dtype)


def unit_rows(weight_RD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(ŵ [R, D], 1/‖w‖ [R, 1]); a zero row stays zero."""
    inverse_R1 = weight_RD.norm(dim=1, keepdim=True).clamp_min(1e-12).reciprocal()
    return weight_RD * inverse_R1, inverse_R1


def set_targets(
    logit_GR: torch.Tensor, column_G: torch.Tensor, first: int, value_G: torch.Tensor
) -> None:
    """logit[i, column_i − first] = value_i in place, where that column lies in this chunk.

    No boolean indexing: on a GPU that would wait for the device.
    """
    inside_G = (column_G >= first) & (column_G < first + logit_GR.shape[1])
    index_G1 = (column_G - first).clamp(0, logit_GR.shape[1] - 1)[:, None]
    kept_G1 = logit_GR.gather(1, index_G1)
    logit_GR.scatter_(1, index_G1, torch.where(inside_G[:, None], value_G[:, None], kept_G1))


def negative_sums(
    embedding_GD: torch.Tensor,
    rows: Rows,
    column_G: torch.Tensor,
    scale: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """First pass: (Z [G], U [G, D]) over this shard's rows, both times exp(−shift).

    Args:
        embedding_GD: unit embeddings.
        column_G: where each image's class is among the rows; −1 if it is on another rank.
        dtype: of the operands of the two matrix products.
    """
    scaled_GD = embedding_GD * scale
    absent_G = embedding_GD.new_full((len(embedding_GD),), -torch.inf)
    sum_G = embedding_GD.new_zeros(len(embedding_GD))
    sum_GD = torch.zeros_like(embedding_GD)
    size = chunk_rows(embedding_GD)
    for first, last in rows.chunks(size):
        unit_RD, _ = unit_rows(rows.select(rows.weight_KD, first, last))
        logit_GR = multiply(scaled_GD, unit_RD.T, dtype)
        if shift := exponent_shift(scale):
            logit_GR -= shift
        set_targets(logit_GR, column_G, first, absent_G)
        logit_GR.exp_()
        sum_G += logit_GR.sum(dim=1)
        if dtype == embedding_GD.dtype:
            sum_GD.addmm_(logit_GR, unit_RD)
        else:
            sum_GD += multiply(logit_GR, unit_RD, dtype)
    return sum_G, sum_GD


@dataclass
class MicroBatch:
    """What the second pass needs of a batch whose loss has been differentiated.

    Attributes:
        embedding_GD: unit embeddings of all ranks.
        column_G: as in `negative_sums`.
        log_denominator_G: log D_i, shifted as the logits are.
        target_slope_G: (p_i − 1) dT_i/dt_i.
        factor: d objective / d loss, as handed to loss.backward(): 0-dimensional.
        rows: the rows that column_G counts in.
        absent_S: rows that this batch did not see though another micro-batch did; None if none.
    """

    embedding_GD: torch.Tensor
    column_G: torch.Tensor
    log_denominator_G: torch.Tensor
    target_slope_G: torch.Tensor
    factor: torch.Tensor
    rows: Rows
    absent_S: torch.Tensor | None = None


def share_rows(batches: list[MicroBatch]) -> list[MicroBatch]:
    """The same micro-batches over the union of their rows, for one second pass."""
    indices = [batch.rows.index_S for batch in batches if batch.rows.index_S is not None]
    if len(batches) == 1 or not indices:
        return batches
    union_S = torch.cat(indices).unique()
    shared = []
    for batch, index_S in zip(batches, indices, strict=True):
        place_S = torch.searchsorted(union_S, index_S)
        absent_S = torch.ones(len(union_S), dtype=torch.bool, device=union_S.device)
        absent_S[place_S] = False
        column_G = torch.where(batch.column_G < 0, -1, place_S[batch.column_G.clamp_min(0)])
        rows = Rows(batch.rows.weight_KD, union_S)
        shared.append(replace(batch, column_G=column_G, rows=rows, absent_S=absent_S))
    return shared


def centre_gradients(
    batches: list[MicroBatch], scale: float, dtype: torch.dtype
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Second pass: (first, last, d objective / d w [R, D]) for each chunk of rows.

    The micro-batches share their rows (`share_rows`). A chunk's centres may be changed before the
    next chunk is asked for.
    """
    rows = batches[0].rows
    scaled = [batch.embedding_GD * scale for batch in batches]
    shifts = [(batch.log_denominator_G + exponent_shift(scale))[:, None] for batch in batches]
    for first, last in rows.chunks(chunk_rows(scaled[0])):
        unit_RD, inverse_R1 = unit_rows(rows.select(rows.weight_KD, first, last))
        gradient_RD = torch.zeros_like(unit_RD)
        for batch, scaled_GD, shift_G1 in zip(batches, scaled, shifts, strict=True):
            share_GR = multiply(scaled_GD, unit_RD.T, dtype)
            share_GR.sub_(shift_G1).exp_()
            if batch.absent_S is not None:
                share_GR.masked_fill_(batch.absent_S[first:last], 0.0)
            set_targets(share_GR, batch.column_G, first, batch.target_slope_G / scale)
            weighted_GD = scaled_GD * (batch.factor / len(scaled_GD))
            if dtype == weighted_GD.dtype:
                gradient_RD.addmm_(share_GR.T, weighted_GD)
            else:
                gradient_RD += multiply(share_GR.T, weighted_GD, dtype)
        radial_R1 = (gradient_RD * unit_RD).sum(dim=1, keepdim=True)
        gradient_RD.addcmul_(unit_RD, radial_R1, value=-1.0).mul_(inverse_R1)
        yield first, last, gradient_RD
