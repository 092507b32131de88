"""The second pass: the gradient of each chunk of centres, from what the first pass left.

The formulas are those of `streaming.py`.
Shapes: G images on all ranks, M those of them that matter to a chunk, D embedding size, R rows of
one chunk, S the rows in use.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from kappaface_dist.head.margins.base import Images, Negatives
from kappaface_dist.head.softmax.chunks import Chunk, Chunks
from kappaface_dist.head.softmax.logit_cache import LogitCache
from kappaface_dist.head.softmax.loss import inverse_denominators
from kappaface_dist.head.softmax.negligible import Tiles
from kappaface_dist.head.softmax.peaks import scale_down
from kappaface_dist.head.softmax.products import multiply
from kappaface_dist.head.softmax.rows import Rows, value_dtype
from kappaface_dist.head.softmax.settings import Softmax


@dataclass(frozen=True)
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
        images: what the margin knew of them.
        negatives, peak_G: as in `negative_sums`, but peak_G over all ranks.
        tiles: those to take, where some may be left out.
        inverse_S: as in `NegativeSums`.
    """

    embedding_GD: torch.Tensor
    column_G: torch.Tensor
    log_denominator_G: torch.Tensor
    target_slope_G: torch.Tensor
    factor: torch.Tensor
    rows: Rows
    cache: LogitCache = field(default_factory=LogitCache)
    images: Images | None = None
    negatives: Negatives | None = None
    peak_G: torch.Tensor | None = None
    tiles: Tiles | None = None
    inverse_S: torch.Tensor | None = None

    def unscaled(self, loss_scale: torch.Tensor | float) -> "MicroBatch":
        """The same without a factor that the loss had."""
        return replace(self, factor=self.factor / loss_scale)


class TargetTerms:
    """a_j = Σ over the images of class j of (factor / G) (p_i − 1) (dT_i/dt_i) e_i.

    Attributes:
        row_X: the rows of the batches' classes, rising, each once; −1 in front where there are
            classes of other ranks, a number beyond the last row behind.
        term_XD: a_j of these rows, the places behind zero.
    """

    def __init__(self, batches: list[MicroBatch]):
        column_X, order_X = torch.cat([batch.column_G for batch in batches]).sort(stable=True)
        new_X = torch.ones_like(column_X)
        new_X[1:] = column_X[1:] != column_X[:-1]
        place_X = new_X.cumsum(0) - 1
        beyond_X = torch.full_like(column_X, len(batches[0].rows))
        self.row_X = beyond_X.scatter_(0, place_X, column_X)
        terms = []
        for batch in batches:
            weight_G = batch.target_slope_G * (batch.factor / len(batch.column_G))
            terms.append(batch.embedding_GD * weight_G[:, None])
        term_XD = torch.cat(terms).index_select(0, order_X)
        self.term_XD = torch.zeros_like(term_XD).index_add_(0, place_X, term_XD)

    def add_to(self, h_RD: torch.Tensor, first: int, inverse_R: torch.Tensor) -> None:
        """h_j += a_j / ‖w_j‖ for a chunk of rows."""
        row_X, term_XD, num_rows = self.row_X, self.term_XD, len(inverse_R)
        if row_X.device.type == "cpu":  # on a GPU the number of images would have to be waited for
            ends = torch.searchsorted(row_X, torch.tensor([first, first + num_rows])).tolist()
            row_X, term_XD = row_X[slice(*ends)], term_XD[slice(*ends)]
        inside_X = (row_X >= first) & (row_X < first + num_rows)
        # Rows of other chunks add zero to the first row.
        place_X = torch.where(inside_X, row_X - first, 0)
        inverse_X = torch.where(inside_X, inverse_R.index_select(0, place_X), 0.0)
        h_RD.index_add_(0, place_X, term_XD * inverse_X[:, None])


def raw_gradients(
    batches: list[MicroBatch], softmax: Softmax
) -> Iterator[tuple[Chunk, torch.Tensor]]:
    """Second pass: each chunk of rows and its h [R, D].

    This is h without the targets' terms, which `gradient` or the kernel adds.
    The micro-batches share their rows. A chunk's centres and h may be changed before
    the next chunk is asked for; h lies in a buffer that the next chunk takes.
    """
    operands, weighted = [], []
    for batch in batches:
        factor = batch.factor * softmax.scale / len(batch.column_G)
        weight_G = inverse_denominators(batch.log_denominator_G) * factor
        weighted_GD = batch.embedding_GD * weight_G[:, None]
        # Rounded here, once for all chunks, but where some have yet to be scaled down.
        weighted.append(weighted_GD.to(softmax.dtype) if batch.peak_G is None else weighted_GD)
        operands.append(batch.embedding_GD.to(softmax.dtype))
    largest = max(batches, key=lambda batch: len(batch.column_G))
    chunks = Chunks(largest.embedding_GD, largest.rows, softmax)
    buffer_RD = largest.embedding_GD.new_empty(chunks.size, weighted[0].shape[1])
    taken = [None if batch.tiles is None else batch.tiles.images() for batch in batches]
    for place, chunk in enumerate(chunks):
        h_RD, num_added = buffer_RD[: len(chunk)], 0
        for batch, operand_GD, weighted_GD, images in zip(
            batches, operands, weighted, taken, strict=True
        ):
            image_M = None if images is None else images[place]
            if image_M is not None and not len(image_M):
                continue
            if batch.peak_G is not None and batch.cache.get(chunk.first, chunk.last) is not None:
                weighted_GD = weighted_GD.clone()
                scale_down(batch.cache.peaks[chunk.first], batch.peak_G, weighted_GD)
            if image_M is not None:
                weighted_GD = weighted_GD.index_select(0, image_M)
            share_GR = _shares(chunks, batch, operand_GD, chunk, image_M)
            multiply(share_GR.T, weighted_GD, softmax.dtype, out=h_RD, add=num_added > 0)
            num_added += 1
        if not num_added:
            h_RD.zero_()
        yield chunk, h_RD


def _shares(
    chunks: Chunks,
    batch: MicroBatch,
    operand_GD: torch.Tensor,
    chunk: Chunk,
    image_M: torch.Tensor | None,
) -> torch.Tensor:
    """Q [M, R] of a chunk, as the first pass kept it or computed again, for all or some images."""
    kept_GR = batch.cache.get(chunk.first, chunk.last)
    if kept_GR is not None:
        return chunks.kept(kept_GR if image_M is None else kept_GR.index_select(0, image_M))
    column_G, peak_G = batch.column_G, batch.peak_G
    if image_M is not None:
        operand_GD = operand_GD.index_select(0, image_M)
        column_G = column_G.index_select(0, image_M)
        peak_G = None if peak_G is None else peak_G.index_select(0, image_M)
    product_MR = chunks.products(operand_GD, chunk)
    share_MR, _ = chunks.shares(
        product_MR, chunk, column_G, negatives=batch.negatives, peak_G=peak_G
    )
    return share_MR


def gradient(chunk: Chunk, h_RD: torch.Tensor, targets: TargetTerms) -> torch.Tensor:
    """d objective / d w of a chunk, in h's place: the targets' terms, then h − ŵ (ŵ·h)."""
    weight_RD, inverse_R = chunk.centre_RD, chunk.inverse_R
    targets.add_to(h_RD, chunk.first, inverse_R)
    radial_R = torch.linalg.vecdot(h_RD, weight_RD).mul_(inverse_R).mul_(inverse_R)
    return h_RD.addcmul_(weight_RD, radial_R[:, None], value=-1.0)


def whole_gradient(batches: list[MicroBatch], softmax: Softmax) -> torch.Tensor:
    """d objective / d w [K, D] of the whole shard; zero for rows that are not in use."""
    rows = batches[0].rows
    dtype = value_dtype(rows.weight_KD.dtype)
    gradient_KD, targets = torch.zeros_like(rows.weight_KD, dtype=dtype), TargetTerms(batches)
    for chunk, h_RD in raw_gradients(batches, softmax):
        place = slice(chunk.first, chunk.last)
        index = place if rows.index_S is None else rows.index_S[place]
        gradient_KD[index] = gradient(chunk, h_RD, targets)
    return gradient_KD
