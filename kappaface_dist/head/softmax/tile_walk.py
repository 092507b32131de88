"""The walk of the second pass's kernel that writes no logits: a tile of rows, over images.

Functions that become a part of the kernel. Where HOIST is false, the compiler leaves in the loop
what is the same in every round (`TileSizes.hoist`).
They take tensors and numbers alone.
Shapes: BLOCK_G images of a tile, BLOCK_R rows of one, BLOCK_D the embedding size, padded.
"""

import inspect

import triton
import triton.language as tl

from kappaface_dist.head.softmax.tile_sums import add_product, load_rows, multiply

# An older Triton has no word for it, and hoists whatever it can.
CAN_KEEP_IN_LOOP = "disable_licm" in inspect.signature(tl.range.__init__).parameters


@triton.jit
def _weighted(
    weight, embedding, scale, row, column, image_weight, shift, limit, FILTER: tl.constexpr
):
    """The exponentials of a tile in bf16, each image's multiplied with its weight."""
    logit = multiply(weight, tl.trans(embedding)) * scale[:, None]
    used = column[None, :] != row[:, None]
    if FILTER:
        used = used & (logit <= limit)
    value = tl.where(used, tl.exp2(logit - shift), 0.0) * image_weight[None, :]
    return value.to(weight.dtype)


@triton.jit
def _add_tile(
    h,
    first,
    weight,
    scale,
    row,
    embedding_ptr,
    column_ptr,
    image_weight_ptr,
    num_images,
    shift,
    limit,
    always,
    FILTER: tl.constexpr,
    SPLIT_WARPS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """h, and what a tile of images from the first on adds to it."""
    dimension = tl.arange(0, BLOCK_D)
    image = first + tl.arange(0, BLOCK_G)
    is_image = image < num_images
    loaded_image = tl.minimum(image, num_images - 1)
    image_place = loaded_image.to(tl.int64)[:, None] * SIZE + dimension[None, :]
    embedding = load_rows(embedding_ptr + image_place, dimension, SIZE, BLOCK_D)
    column = tl.load(column_ptr + loaded_image)
    image_weight = tl.load(image_weight_ptr + image, mask=is_image, other=0.0)
    share = tl.zeros([BLOCK_R, BLOCK_G], weight.dtype)
    if SPLIT_WARPS:  # as in tile_sums.py
        if always > 0:
            share = _weighted(
                weight, embedding, scale, row, column, image_weight, shift, limit, FILTER
            )
    else:
        share = _weighted(weight, embedding, scale, row, column, image_weight, shift, limit, FILTER)
    return add_product(h, share, embedding)


@triton.jit
def add_images(
    weight,
    scale,
    row,
    embedding_ptr,
    column_ptr,
    image_weight_ptr,
    num_images,
    shift,
    limit,
    always,
    FILTER: tl.constexpr,
    SPLIT_WARPS: tl.constexpr,
    SIZE: tl.constexpr,
    STAGES: tl.constexpr,
    HOIST: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """h of a tile of rows, over all images: [BLOCK_R, BLOCK_D]."""
    h = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    if HOIST:
        for first in tl.range(0, num_images, BLOCK_G, num_stages=STAGES):
            h = _add_tile(
                h,
                first,
                weight,
                scale,
                row,
                embedding_ptr,
                column_ptr,
                image_weight_ptr,
                num_images,
                shift,
                limit,
                always,
                FILTER,
                SPLIT_WARPS,
                SIZE,
                BLOCK_G,
                BLOCK_R,
                BLOCK_D,
            )
    else:
        for first in tl.range(0, num_images, BLOCK_G, num_stages=STAGES, disable_licm=True):
            h = _add_tile(
                h,
                first,
                weight,
                scale,
                row,
                embedding_ptr,
                column_ptr,
                image_weight_ptr,
                num_images,
                shift,
                limit,
                always,
                FILTER,
                SPLIT_WARPS,
                SIZE,
                BLOCK_G,
                BLOCK_R,
                BLOCK_D,
            )
    return h
