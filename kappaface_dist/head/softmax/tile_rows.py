"""The end of the second pass's kernel that writes no logits: a tile of rows learns from its h.

A function that is called, with registers of its own: inlined, what its addresses have in common
would be kept in the registers that the kernel's products need.
It takes tensors and numbers alone.
"""

import triton
import triton.language as tl

from kappaface_dist.head.softmax.update_kernel import update_block


@triton.jit(noinline=True)
def update_part(
    first_row,
    num_rows,
    number_ptr,
    scratch_ptr,
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
    SAMPLED: tl.constexpr,
    SPLIT: tl.constexpr,
    ROUNDED: tl.constexpr,
    MOMENTUM: tl.constexpr,
    SKIPPABLE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    """Update a tile of rows from their h in scratch, some at a time."""
    dimension = tl.arange(0, BLOCK_D)
    for first in range(0, BLOCK_R, BLOCK_U):
        h_row = first + tl.arange(0, BLOCK_U)
        row = first_row + h_row
        is_row = row < num_rows
        number = row.to(tl.int64)
        if SAMPLED:
            number = tl.load(number_ptr + row, mask=is_row, other=0)
        h_place = h_row[:, None] * SIZE + dimension[None, :]
        h = tl.load(scratch_ptr + h_place, mask=(dimension < SIZE)[None, :], other=0.0)
        update_block(
            row,
            is_row,
            number,
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
            SEARCH_STEPS,
            SIZE,
            SPLIT,
            ROUNDED,
            MOMENTUM,
            SKIPPABLE,
            BLOCK_D,
        )
