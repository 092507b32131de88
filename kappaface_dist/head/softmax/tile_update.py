"""The Triton kernel of the second pass that writes neither logits nor gradients.

A program keeps h of a tile of rows in registers and walks over the images: product, mask,
exponential, product. Then it updates these rows as `update_kernel.py` does and takes the next tile.
It takes tensors and numbers alone. With TRITON_INTERPRET=1 it runs on the CPU, slowly, for tests.
Shapes: K classes of this shard, D embedding size, S the rows in use, X targets, Y images of all
micro-batches.
"""

import torch
import triton
import triton.language as tl

from kappaface_dist.head.softmax.tile_rows import update_part
from kappaface_dist.head.softmax.tile_sizes import TileSizes, num_programs, sizes_of
from kappaface_dist.head.softmax.tile_sums import load_rows
from kappaface_dist.head.softmax.tile_walk import CAN_KEEP_IN_LOOP, add_images
from kappaface_dist.head.softmax.update_kernel import int32_key


# A specialised number could be folded away, and with it the branch that asks for it.
@triton.jit(do_not_specialize=["always"])
def _update_tiles(
    operand_ptr,
    weight_ptr,
    momentum_ptr,
    inverse_ptr,
    number_ptr,
    embedding_ptr,
    column_ptr,
    image_weight_ptr,
    scratch_ptr,
    target_row_ptr,
    target_term_ptr,
    skip_ptr,
    num_images,
    num_rows,
    num_targets,
    factor,
    shift,
    limit,
    always,
    lr,
    momentum,
    weight_decay,
    row_key,
    column_key,
    first_class,
    SEARCH_STEPS: tl.constexpr,
    FILTER: tl.constexpr,
    SAMPLED: tl.constexpr,
    SPLIT_WARPS: tl.constexpr,
    SPLIT: tl.constexpr,
    ROUNDED: tl.constexpr,
    MOMENTUM: tl.constexpr,
    SKIPPABLE: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    STAGES: tl.constexpr,
    HOIST: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    dimension = tl.arange(0, BLOCK_D)
    scratch_ptr += tl.program_id(0) * BLOCK_R * SIZE
    for tile in range(tl.program_id(0), tl.cdiv(num_rows, BLOCK_R), tl.num_programs(0)):
        # Nought, but not known to be: addresses that seem new with each tile are not kept in
        # registers that the products need. Times 16, for the sake of alignment.
        nought = (tile < -always).to(tl.int32) * 16
        row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
        # As in tile_sums.py: the last one in place of those that are not there.
        loaded_row = tl.minimum(row, num_rows - 1)
        number = loaded_row.to(tl.int64)
        if SAMPLED:
            number = tl.load(number_ptr + loaded_row)
        operand_place = number[:, None] * STRIDE + dimension[None, :]
        weight = load_rows(operand_ptr + nought + operand_place, dimension, SIZE, BLOCK_D)
        inverse = tl.load(inverse_ptr + nought + loaded_row)
        scale = inverse * factor
        h = add_images(
            weight,
            scale,
            row,
            embedding_ptr + nought,
            column_ptr + nought,
            image_weight_ptr + nought,
            num_images,
            shift,
            limit,
            always,
            FILTER,
            SPLIT_WARPS,
            SIZE,
            STAGES,
            HOIST,
            BLOCK_G,
            BLOCK_R,
            BLOCK_D,
        )
        # Through memory, since the update needs registers for more than h: a part of the rows at a
        # time. The memory is this program's own and stays in the cache.
        row_of_tile = tl.arange(0, BLOCK_R)
        scratch_place = row_of_tile[:, None] * SIZE + dimension[None, :]
        in_row = (dimension < SIZE)[None, :]
        tl.store(scratch_ptr + nought + scratch_place, h * inverse[:, None], mask=in_row)
        tl.debug_barrier()
        update_part(
            tile * BLOCK_R,
            num_rows,
            number_ptr + nought,
            scratch_ptr + nought,
            weight_ptr + nought,
            momentum_ptr + nought,
            target_row_ptr + nought,
            target_term_ptr + nought,
            skip_ptr + nought,
            num_targets,
            lr,
            momentum,
            weight_decay,
            row_key,
            column_key,
            first_class,
            SEARCH_STEPS,
            SAMPLED,
            SPLIT,
            ROUNDED,
            MOMENTUM,
            SKIPPABLE,
            SIZE,
            BLOCK_R,
            BLOCK_D,
            BLOCK_U,
        )
        tl.debug_barrier()


def update_tiles(
    weight_KD: torch.Tensor,
    momentum_KD: torch.Tensor | None,
    inverse_S: torch.Tensor,
    index_S: torch.Tensor | None,
    embedding_YD: torch.Tensor,
    column_Y: torch.Tensor,
    weight_Y: torch.Tensor,
    target_row_X: torch.Tensor,
    target_term_XD: torch.Tensor,
    *,
    split: bool,
    factor: float,
    shift: float,
    limit: float | None,
    lr: float,
    momentum: float,
    weight_decay: float,
    skip: torch.Tensor | None,
    row_key: int,
    column_key: int,
    first_class: int,
    sizes: TileSizes | None = None,
) -> None:
    """The whole second pass of a step and the update of its rows, in place.

    Args:
        weight_KD: the shard's centres as they lie, split or in bf16.
        momentum_KD: fp32 or bf16; None: there is none.
        inverse_S: 1/‖w_j‖ of the rows in use, as the products see them.
        index_S: the rows in use; None: all.
        embedding_YD: unit embeddings, bf16, contiguous.
        column_Y: each image's place among the rows in use; −1 if its class is on another rank.
        weight_Y: what the exponentials of each image are multiplied with: factor s / (G D_i).
        factor, shift, limit: of the logits in base 2; limit None: no filter.
        target_row_X, target_term_XD, skip, row_key, column_key, first_class: as in `update_rows`.
        sizes: None: what suits the device.
    """
    num_images, size = embedding_YD.shape
    num_rows = len(inverse_S)
    sizes = sizes or sizes_of("update", weight_KD.device)
    constants = sizes.update_constants(size)
    constants["HOIST"] |= not CAN_KEEP_IN_LOOP
    programs = min(num_programs(weight_KD.device), triton.cdiv(num_rows, sizes.rows))
    operand_KX = weight_KD.view(torch.bfloat16)
    _update_tiles[(programs,)](
        operand_KX,
        weight_KD.view(torch.int16) if split else weight_KD,
        inverse_S if momentum_KD is None else momentum_KD,
        inverse_S,
        column_Y if index_S is None else index_S,
        embedding_YD,
        column_Y.int(),
        weight_Y,
        inverse_S.new_empty(programs, sizes.rows, size),
        target_row_X,
        target_term_XD,
        inverse_S if skip is None else skip.reshape(1).to(torch.int32),
        num_images,
        num_rows,
        len(target_row_X),
        factor,
        shift,
        0.0 if limit is None else limit,
        1,
        lr,
        momentum,
        weight_decay,
        int32_key(row_key),
        int32_key(column_key),
        first_class,
        SEARCH_STEPS=len(target_row_X).bit_length(),
        FILTER=limit is not None,
        SAMPLED=index_S is not None,
        SPLIT=split,
        ROUNDED=weight_KD.dtype == torch.bfloat16,
        MOMENTUM=momentum_KD is not None,
        SKIPPABLE=skip is not None,
        STRIDE=operand_KX.shape[1],
        **constants,
        num_warps=sizes.warps,
    )
