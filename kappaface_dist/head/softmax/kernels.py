"""Triton versions of the head's two inner loops beside the matrix products; optional.

`exponentiate` reads a chunk's fp32 products once and writes Q in bf16 and the row sums;
`update_rows`, of `update_kernel.py`, reads h, centre and momentum once and writes the last two.
The kernels that write no logits, `tile_sums.py` and `tile_update.py`, are handed out here too.
All compute what the plain functions of `chunks.py`, `row_update.py` and `rounding.py` do, in
the same order on every run. They take tensors and numbers alone.
With TRITON_INTERPRET=1 they run on the CPU, slowly, for tests.
Shapes: G images on all ranks, R rows of one chunk, X addends: blocks of them.
"""

import torch
import triton
import triton.language as tl

from kappaface_dist.head.softmax.measured import fastest
from kappaface_dist.head.softmax.tile_sums import sum_tiles
from kappaface_dist.head.softmax.tile_update import update_tiles
from kappaface_dist.head.softmax.update_kernel import update_rows

__all__ = ["exponentiate", "fastest", "sum_tiles", "update_rows", "update_tiles"]

# A tile of 32 x 128 logits is 16 KB of registers over 4 warps: 32 values a thread.
BLOCK_G, BLOCK_R = 32, 128


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
    """Write Q of a chunk to out [G, R]; returns its row sums as addends [X, G].

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
    return part_XG
