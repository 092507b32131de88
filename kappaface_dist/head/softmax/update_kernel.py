"""The Triton kernel of `SGDRows`: gradient, momentum, update and rounding of a chunk of centres.

`update_block` is what it does to a block of rows, as `tile_update.py` does at the end of its own.
It takes tensors and numbers alone: this file imports nothing of ours.
Shapes: R rows of one chunk, D embedding size, X targets, S rows in use.
"""

import torch
import triton
import triton.language as tl

# Values of one tile of rows; a row is one block, so its sums need no second pass.
UPDATE_TILE = 2048


@triton.jit
def _mix(state):
    """`counter_random._mix32`."""
    state *= 0x7FEB352D
    state ^= state >> 15
    state *= 0x846CA68B
    return state ^ (state >> 16)


@triton.jit
def _key(key, counter):
    """`counter_random.keys32`."""
    state = counter.to(tl.uint32) * 0x9E3779B9 + key.to(tl.uint32, bitcast=True)
    return _mix(state ^ (state >> 16))


@triton.jit
def update_block(
    row,
    inside_row,
    place_row,
    number,
    h,
    weight_ptr,
    momentum_ptr,
    target_row_ptr,
    target_term_ptr,
    skip_ptr,
    num_targets,
    lr,
    momentum,
    weight_decay,
    row_key,
    column_key,
    first_class,
    SEARCH_STEPS: tl.constexpr,
    SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    ROUNDED: tl.constexpr,
    MOMENTUM: tl.constexpr,
    SKIPPABLE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Update a block of rows from their h, [rows, BLOCK_D], where inside_row is true.

    row is a row's number among those in use, number the one in the shard, place_row where it lies
    behind weight_ptr and momentum_ptr.
    """
    column = tl.arange(0, BLOCK_D)
    inside = inside_row[:, None] & (column < SIZE)[None, :]
    place = place_row.to(tl.int64)[:, None] * SIZE + column[None, :]
    upper_place = place_row.to(tl.int64)[:, None] * (2 * SIZE) + column[None, :]
    if SPLIT:
        upper = tl.load(weight_ptr + upper_place, mask=inside, other=0).to(tl.int32)
        lower = tl.load(weight_ptr + upper_place + SIZE, mask=inside, other=0).to(tl.int32)
        weight = ((upper << 16) | (lower & 0xFFFF)).to(tl.float32, bitcast=True)
    else:
        weight = tl.load(weight_ptr + place, mask=inside, other=0.0).to(tl.float32)
    squared_norm = tl.maximum(tl.sum(weight * weight, axis=1), 1e-24)
    # Where in the sorted targets each row is, or would be.
    low = tl.zeros_like(row)
    high = low + num_targets
    for _ in range(SEARCH_STEPS):
        middle = (low + high) // 2
        below = tl.load(target_row_ptr + middle, mask=middle < num_targets, other=0) < row
        searching = low < high
        low = tl.where(searching & below, middle + 1, low)
        high = tl.where(searching & (below == 0), middle, high)
    found = tl.load(target_row_ptr + low, mask=low < num_targets, other=-1) == row
    term = tl.load(
        target_term_ptr + low.to(tl.int64)[:, None] * SIZE + column[None, :],
        mask=inside & found[:, None],
        other=0.0,
    )
    h += term / tl.sqrt(squared_norm)[:, None]
    radial = tl.sum(weight * h, axis=1) / squared_norm
    gradient = h - weight * radial[:, None] + weight * weight_decay
    kept = gradient
    if MOMENTUM:
        before = tl.load(momentum_ptr + place, mask=inside, other=0.0).to(tl.float32)
        kept = before * momentum + gradient
    weight = weight - lr * kept
    if SKIPPABLE:
        inside = inside & (tl.load(skip_ptr + tl.zeros_like(row)) == 0)[:, None]
    if MOMENTUM:
        tl.store(momentum_ptr + place, kept.to(momentum_ptr.dtype.element_ty), mask=inside)
    if ROUNDED:
        row_bits = _key(row_key, number + first_class)
        noise = _mix(row_bits[:, None] ^ _key(column_key, column >> 1)[None, :])
        noise = (noise >> ((column & 1) * 16).to(tl.uint32)[None, :]) & 0xFFFF
        total = tl.sum(tl.where(inside, weight, 0.0), axis=1)
        noise = tl.where((tl.abs(total) < float("inf"))[:, None], noise, 0)
        bits = (weight.to(tl.uint32, bitcast=True) + noise) >> 16
        upper = bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
        tl.store(weight_ptr + place, upper, mask=inside)
    elif SPLIT:
        bits = weight.to(tl.int32, bitcast=True)
        tl.store(weight_ptr + upper_place, (bits >> 16).to(tl.int16), mask=inside)
        tl.store(weight_ptr + upper_place + SIZE, bits.to(tl.int16), mask=inside)
    else:
        tl.store(weight_ptr + place, weight, mask=inside)


@triton.jit
def _update_rows(
    weight_ptr,
    h_ptr,
    momentum_ptr,
    target_row_ptr,
    target_term_ptr,
    skip_ptr,
    number_ptr,
    first,
    num_targets,
    num_rows,
    lr,
    momentum,
    weight_decay,
    row_key,
    column_key,
    first_class,
    SEARCH_STEPS: tl.constexpr,
    SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    ROUNDED: tl.constexpr,
    SAMPLED: tl.constexpr,
    MOMENTUM: tl.constexpr,
    SKIPPABLE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_D)
    inside = (row < num_rows)[:, None] & (column < SIZE)[None, :]
    place = row.to(tl.int64)[:, None] * SIZE + column[None, :]
    number = (row + first).to(tl.int64)
    if SAMPLED:
        number = tl.load(number_ptr + number, mask=row < num_rows, other=0)
    update_block(
        row + first,
        row < num_rows,
        row,
        number,
        tl.load(h_ptr + place, mask=inside, other=0.0),
        weight_ptr,
        momentum_ptr,
        target_row_ptr,
        target_term_ptr,
        skip_ptr,
        num_targets,
        lr,
        momentum,
        weight_decay,
        row_key,
        column_key,
        first_class,
        SEARCH_STEPS,
        SIZE,
        SPLIT,
        ROUNDED,
        MOMENTUM,
        SKIPPABLE,
        BLOCK_D,
    )


def update_rows(
    chunk_RD: torch.Tensor,
    h_RD: torch.Tensor,
    momentum_RD: torch.Tensor | None,
    target_row_X: torch.Tensor,
    target_term_XD: torch.Tensor,
    first: int,
    *,
    split: bool,
    lr: float,
    momentum: float,
    weight_decay: float,
    skip: torch.Tensor | None,
    index_S: torch.Tensor | None,
    row_key: int,
    column_key: int,
    first_class: int,
) -> None:
    """Targets' terms, projection, momentum, weight decay, update of a chunk of rows, in place.

    The formula of the update is that of `SGDRows`.

    Args:
        chunk_RD: the centres as they lie, fp32 by type, or bf16.
        h_RD: as `raw_gradients` hands it out.
        momentum_RD: fp32 or bf16; None: there is none.
        target_row_X, target_term_XD: of all rows, as in `TargetTerms`.
        first: the number of this chunk's first row.
        split: whether chunk_RD is split into halves.
        skip: 0-dimensional bool; where true, nothing changes.
        index_S: the shard's rows that are in use, where not all are.
        row_key, column_key, first_class: as in `Rounding`, for bf16 centres.
    """
    num_rows, size = h_RD.shape
    block_D = triton.next_power_of_2(size)
    block_R = max(1, UPDATE_TILE // block_D)
    _update_rows[(triton.cdiv(num_rows, block_R),)](
        chunk_RD.view(torch.int16) if split else chunk_RD,
        h_RD,
        h_RD if momentum_RD is None else momentum_RD,
        target_row_X,
        target_term_XD,
        h_RD if skip is None else skip.reshape(1).to(torch.int32),
        h_RD if index_S is None else index_S,
        first,
        len(target_row_X),
        num_rows,
        lr,
        momentum,
        weight_decay,
        int32_key(row_key),
        int32_key(column_key),
        first_class,
        SEARCH_STEPS=len(target_row_X).bit_length(),
        SIZE=size,
        SPLIT=split,
        ROUNDED=chunk_RD.dtype == torch.bfloat16,
        SAMPLED=index_S is not None,
        MOMENTUM=momentum_RD is not None,
        SKIPPABLE=skip is not None,
        BLOCK_R=block_R,
        BLOCK_D=block_D,
    )


def int32_key(key: int) -> int:
    """The lower 32 bits as int32 has them, so that a kernel is compiled for one type alone."""
    return (key & 0x7FFFFFFF) - (key & 0x80000000)
