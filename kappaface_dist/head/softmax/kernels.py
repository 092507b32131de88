"""Triton versions of the head's two inner loops beside the matrix products; optional.

`exponentiate` reads a chunk's fp32 products once and writes Q in bf16 and the row sums;
`update_rows` reads h, centre and momentum once and writes the last two. Both compute what the
plain functions of `streaming.py` and `row_update.py` do, in the same order on every run. They take
tensors and numbers alone: this file imports nothing of ours.
With TRITON_INTERPRET=1 they run on the CPU, slowly, for tests.
Shapes: G images on all ranks, R rows of one chunk, D embedding size.
"""

import torch
import triton
import triton.language as tl

# A tile of 32 x 128 logits is 16 KB of registers over 4 warps: 32 values a thread.
BLOCK_G, BLOCK_R = 32, 128
# Values of one tile of rows; a row is one block, so its sums need no second pass.
UPDATE_TILE = 2048


@triton.jit
def _exponentiate(
    product_ptr,
    inverse_ptr,
    column_ptr,
    share_ptr,
    part_ptr,
    first,
    num_images,
    num_rows,
    factor,
    shift,
    limit,
    FILTER: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    image = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = (image < num_images)[:, None] & (row < num_rows)[None, :]
    place = image.to(tl.int64)[:, None] * num_rows + row[None, :]
    inverse = tl.load(inverse_ptr + row, mask=row < num_rows, other=0.0)
    column = tl.load(column_ptr + image, mask=image < num_images, other=-1)
    logit = tl.load(product_ptr + place, mask=inside, other=0.0) * (inverse * factor)[None, :]
    used = inside & ((column - first)[:, None] != row[None, :])
    if FILTER:
        used = used & (logit <= limit)
    value = tl.where(used, tl.exp2(logit - shift), 0.0)
    tl.store(
        part_ptr + tl.program_id(0) * num_images + image,
        tl.sum(value, axis=1),
        mask=image < num_images,
    )
    share = (value * inverse[None, :]).to(share_ptr.dtype.element_ty)
    tl.store(share_ptr + place, share, mask=inside)


def exponentiate(
    product_GR: torch.Tensor,
    inverse_R: torch.Tensor,
    column_G: torch.Tensor,
    first: int,
    *,
    factor: float,
    shift: float,
    limit: float | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """Write Q of a chunk to out [G, R]; returns its row sums [G], as the plain version does.

    Args:
        product_GR: e_i·w_j, fp32, contiguous.
        inverse_R: 1/‖w_j‖.
        column_G: row of each image's class; −1 if it is on another rank.
        first: the row at which the chunk starts.
        factor, shift, limit: of the logits in base 2; limit None: no filter.
    """
    num_images, num_rows = product_GR.shape
    num_blocks = triton.cdiv(num_rows, BLOCK_R)
    part_XG = product_GR.new_empty(num_blocks, num_images)
    _exponentiate[(num_blocks, triton.cdiv(num_images, BLOCK_G))](
        product_GR,
        inverse_R,
        column_G,
        out,
        part_XG,
        first,
        num_images,
        num_rows,
        factor,
        shift,
        0.0 if limit is None else limit,
        FILTER=limit is not None,
        BLOCK_G=BLOCK_G,
        BLOCK_R=BLOCK_R,
    )
    return part_XG.sum(dim=0)


@triton.jit
def _update_rows(
    weight_ptr,
    h_ptr,
    momentum_ptr,
    target_row_ptr,
    target_term_ptr,
    skip_ptr,
    first,
    num_targets,
    num_rows,
    lr,
    momentum,
    weight_decay,
    SEARCH_STEPS: tl.constexpr,
    SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    SKIPPABLE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_D)
    inside = (row < num_rows)[:, None] & (column < SIZE)[None, :]
    place = row.to(tl.int64)[:, None] * SIZE + column[None, :]
    upper_place = row.to(tl.int64)[:, None] * (2 * SIZE) + column[None, :]
    if SPLIT:
        upper = tl.load(weight_ptr + upper_place, mask=inside, other=0).to(tl.int32)
        lower = tl.load(weight_ptr + upper_place + SIZE, mask=inside, other=0).to(tl.int32)
        weight = ((upper << 16) | (lower & 0xFFFF)).to(tl.float32, bitcast=True)
    else:
        weight = tl.load(weight_ptr + place, mask=inside, other=0.0)
    h = tl.load(h_ptr + place, mask=inside, other=0.0)
    kept = tl.load(momentum_ptr + place, mask=inside, other=0.0).to(tl.float32)
    squared_norm = tl.maximum(tl.sum(weight * weight, axis=1), 1e-24)
    # Where in the sorted targets each row is, or would be.
    low = tl.zeros_like(row)
    high = low + num_targets
    for _ in range(SEARCH_STEPS):
        middle = (low + high) // 2
        below = tl.load(target_row_ptr + middle, mask=middle < num_targets, other=0) < row + first
        searching = low < high
        low = tl.where(searching & below, middle + 1, low)
        high = tl.where(searching & (below == 0), middle, high)
    found = tl.load(target_row_ptr + low, mask=low < num_targets, other=-1) == row + first
    term = tl.load(
        target_term_ptr + low.to(tl.int64)[:, None] * SIZE + column[None, :],
        mask=inside & found[:, None],
        other=0.0,
    )
    h += term / tl.sqrt(squared_norm)[:, None]
    radial = tl.sum(weight * h, axis=1) / squared_norm
    gradient = h - weight * radial[:, None] + weight * weight_decay
    kept = kept * momentum + gradient
    weight = weight - lr * kept
    if SKIPPABLE:
        inside = inside & (tl.load(skip_ptr + tl.zeros_like(row)) == 0)[:, None]
    tl.store(momentum_ptr + place, kept.to(momentum_ptr.dtype.element_ty), mask=inside)
    if SPLIT:
        bits = weight.to(tl.int32, bitcast=True)
        tl.store(weight_ptr + upper_place, (bits >> 16).to(tl.int16), mask=inside)
        tl.store(weight_ptr + upper_place + SIZE, bits.to(tl.int16), mask=inside)
    else:
        tl.store(weight_ptr + place, weight, mask=inside)


def update_rows(
    chunk_RD: torch.Tensor,
    h_RD: torch.Tensor,
    momentum_RD: torch.Tensor,
    target_row_X: torch.Tensor,
    target_term_XD: torch.Tensor,
    first: int,
    *,
    split: bool,
    lr: float,
    momentum: float,
    weight_decay: float,
    skip: torch.Tensor | None,
) -> None:
    """Targets' terms, projection, momentum, weight decay, update of a chunk of rows, in place.

    The formula of the update is that of `SGDRows`.

    Args:
        chunk_RD: the centres as they lie, fp32 by type.
        h_RD: as `raw_gradients` hands it out.
        momentum_RD: fp32 or bf16.
        target_row_X, target_term_XD: of all rows, as in `TargetTerms`.
        first: the number of this chunk's first row.
        split: whether chunk_RD is split into halves.
        skip: 0-dimensional bool; where true, nothing changes.
    """
    num_rows, size = h_RD.shape
    block_D = triton.next_power_of_2(size)
    block_R = max(1, UPDATE_TILE // block_D)
    _update_rows[(triton.cdiv(num_rows, block_R),)](
        chunk_RD.view(torch.int16) if split else chunk_RD,
        h_RD,
        momentum_RD,
        target_row_X,
        target_term_XD,
        h_RD if skip is None else skip.reshape(1).to(torch.int32),
        first,
        len(target_row_X),
        num_rows,
        lr,
        momentum,
        weight_decay,
        SEARCH_STEPS=len(target_row_X).bit_length(),
        SIZE=size,
        SPLIT=split,
        SKIPPABLE=skip is not None,
        BLOCK_R=block_R,
        BLOCK_D=block_D,
    )
