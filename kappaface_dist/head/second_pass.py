"""The second pass: the gradient of each chunk of centres, from what the first pass left.

The formulas are those of `streaming_softmax.py`.
Shapes: G images on all ranks, D embedding size, R rows of one chunk, S the rows in use.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from kappaface_dist.head.products import multiply
from kappaface_dist.head.rows import Rows
from kappaface_dist.head.streaming_softmax import (
    Chunks,
    LogitCache,
    Negatives,
    Softmax,
    inverse_norms,
)

# exp(−log D) stays finite: a denominator below e^-80 needs a scale near the largest, and every
# centre, the target's too, on the far side of the sphere.
SMALLEST_LOG_DENOMINATOR = -80.0


@dataclass
class MicroBatch:
    """What the second pass needs of a batch whose loss has been differentiated.

    Attributes:
        embedding_GD: unit embeddings of all ranks.
        column_G: as in `negative_sums`.
        log_denominator_G: log D_i, shifted as the logits are.
        target_slope_G: (p_i − 1) dT_i/dt_i; zero where the class is on another rank.
        factor: d objective / d loss, as handed to loss.backward(): 0-dimensional.
        rows: the rows that column_G counts in.
        cache: what the first pass kept of its chunks.
        absent_S: rows that this batch did not see though another micro-batch did; None if none.
        negatives: as in `negative_sums`.
    """

    embedding_GD: torch.Tensor
    column_G: torch.Tensor
    log_denominator_G: torch.Tensor
    target_slope_G: torch.Tensor
    factor: torch.Tensor
    rows: Rows
    cache: LogitCache | None = None
    absent_S: torch.Tensor | None = None
    negatives: Negatives | None = None


def share_rows(batches: list[MicroBatch]) -> list[MicroBatch]:
    """The same micro-batches over the union of their rows, for one second pass.

    Where they drew different rows, what their first passes kept does not fit the union's chunks.
    """
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
        rows = replace(batch.rows, index_S=union_S)
        shared.append(replace(batch, column_G=column_G, rows=rows, cache=None, absent_S=absent_S))
    return shared


class TargetTerms:
    """Σ over a class's images of (factor / G) (p_i − 1) (dT_i/dt_i) e_i, for the classes here."""

    def __init__(self, batch: MicroBatch):
        num_images = len(batch.column_G)
        sorted_G, order_G = batch.column_G.sort(stable=True)
        new_G = torch.ones_like(sorted_G)
        new_G[1:] = sorted_G[1:] != sorted_G[:-1]
        place_G = new_G.cumsum(0) - 1
        # Rising: −1 if there are classes of other ranks, each class once, then beyond the end.
        self.row_G = torch.full_like(sorted_G, len(batch.rows)).scatter_(0, place_G, sorted_G)
        weight_G1 = (batch.target_slope_G * (batch.factor / num_images))[:, None]
        term_GD = (batch.embedding_GD * weight_G1).index_select(0, order_G)
        self.term_GD = torch.zeros_like(term_GD).index_add_(0, place_G, term_GD)

    def add_to(self, h_XD: torch.Tensor, first: int, inverse_R: torch.Tensor) -> None:
        """Add this chunk's terms to h, which has a row more than the chunk, for those of others."""
        row_G, term_GD, num_rows = self.row_G, self.term_GD, len(inverse_R)
        if row_G.device.type == "cpu":  # on a GPU the number of images would have to be waited for
            ends = torch.searchsorted(row_G, torch.tensor([first, first + num_rows])).tolist()
            row_G, term_GD = row_G[slice(*ends)], term_GD[slice(*ends)]
        inside_G = (row_G >= first) & (row_G < first + num_rows)
        place_G = torch.where(inside_G, row_G - first, num_rows)
        inverse_G1 = inverse_R.index_select(0, place_G.clamp_max(num_rows - 1))[:, None]
        h_XD.index_add_(0, place_G, term_GD * inverse_G1)


def raw_gradients(
    batches: list[MicroBatch], softmax: Softmax
) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """Second pass: (first, last, centres as they lie [R, D], h [R, D]) for each chunk of rows.

    The micro-batches share their rows (`share_rows`). A chunk's centres and h may be changed before
    the next chunk is asked for; h lies in a buffer that the next chunk takes.
    """
    weighted = []
    for batch in batches:
        log_D_G = batch.log_denominator_G.clamp_min(SMALLEST_LOG_DENOMINATOR)
        weight_G = (-log_D_G).exp() * (batch.factor * softmax.scale / len(log_D_G))
        weighted.append(batch.embedding_GD * weight_G[:, None])
    targets = [TargetTerms(batch) for batch in batches]
    chunks = Chunks(batches[0].embedding_GD, batches[0].rows, softmax)
    buffer_XD = weighted[0].new_empty(chunks.size + 1, weighted[0].shape[1])
    for first, last, chunk_RD, operand_RD, inverse_R in chunks:
        h_RD = buffer_XD[: last - first]
        for number, (batch, weighted_GD) in enumerate(zip(batches, weighted, strict=True)):
            share_GR = None if batch.cache is None else batch.cache.get(first)
            if share_GR is None:
                share_GR, _ = chunks.shares(
                    batch.embedding_GD,
                    operand_RD,
                    inverse_R,
                    batch.column_G,
                    first,
                    negatives=batch.negatives,
                )
            if batch.absent_S is not None:
                share_GR.masked_fill_(batch.absent_S[first:last], 0.0)
            multiply(share_GR.T, weighted_GD, softmax.dtype, out=h_RD, add=number > 0)
        for terms in targets:
            terms.add_to(buffer_XD[: last - first + 1], first, inverse_R)
        yield first, last, chunk_RD, h_RD


def project(weight_RD: torch.Tensor, h_RD: torch.Tensor) -> torch.Tensor:
    """h − ŵ (ŵ·h), in place: the gradient with respect to raw centres."""
    inverse_R = inverse_norms(weight_RD, weight_RD.dtype)
    radial_R = torch.linalg.vecdot(h_RD, weight_RD).mul_(inverse_R.square_())
    return h_RD.addcmul_(weight_RD, radial_R[:, None], value=-1.0)


def whole_gradient(batches: list[MicroBatch], softmax: Softmax) -> torch.Tensor:
    """d objective / d w [K, D] of the whole shard; zero for rows that are not in use."""
    rows = batches[0].rows
    gradient_KD = torch.zeros_like(rows.weight_KD)
    for first, last, chunk_RD, h_RD in raw_gradients(batches, softmax):
        place = slice(first, last) if rows.index_S is None else rows.index_S[first:last]
        gradient_KD[place] = project(rows.centres(chunk_RD), h_RD)
    return gradient_KD
