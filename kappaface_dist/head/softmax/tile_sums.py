"""The Triton kernel of the first pass that writes no logits.

A program keeps the sums of a tile of images, U among them, in registers, and walks over a part of
the shard's rows: product, mask, exponential, sums, product. Each part's sums are added up at the
end, in the same order on every run of a GPU.
It takes tensors and numbers alone. With TRITON_INTERPRET=1 it runs on the CPU, slowly, for tests.
Shapes: G images on all ranks, D embedding size, S the rows in use, P parts of them.
"""

import os

import torch
import triton
import triton.language as tl

from kappaface_dist.head.softmax.tile_sizes import TileSizes, num_programs, sizes_of

# Triton's interpreter would multiply the bits of bf16 numbers.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def multiply(a, b):
    """a @ b, summed in fp32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b)


@triton.jit
def add_product(total, a, b):
    """total + a @ b."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total)


@triton.jit
def load_rows(place, dimension, SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """A block of rows, each as long as BLOCK_D, zero beyond SIZE."""
    if SIZE == BLOCK_D:
        return tl.load(place)
    else:
        return tl.load(place, mask=(dimension < SIZE)[None, :], other=0.0)


@triton.jit
def _shares(
    embedding, weight, inverse, column, row, is_row, factor, shift, limit, FILTER: tl.constexpr
):
    """Q of a tile in bf16, its sums over the rows, and the largest cosines."""
    product = multiply(embedding, tl.trans(weight))
    used = is_row[None, :] & (column[:, None] != row[None, :])
    scaled = tl.where(used, product * inverse[None, :], float("-inf"))
    logit = scaled * factor
    if FILTER:
        logit = tl.where(logit <= limit, logit, float("-inf"))
    value = tl.exp2(logit - shift)
    share = (value * inverse[None, :]).to(weight.dtype)
    return share, tl.sum(value, axis=1), tl.max(scaled, axis=1)


# A specialised number could be folded away, and with it the branch that asks for it.
@triton.jit(do_not_specialize=["always"])
def _sum_tiles(
    embedding_ptr,
    weight_ptr,
    inverse_ptr,
    column_ptr,
    number_ptr,
    part_u_ptr,
    part_sum_ptr,
    part_nearest_ptr,
    num_images,
    num_rows,
    rows_of_part,
    factor,
    shift,
    limit,
    always,
    FILTER: tl.constexpr,
    NEAREST: tl.constexpr,
    SAMPLED: tl.constexpr,
    SPLIT_WARPS: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    image_of_tile = tl.arange(0, BLOCK_G)
    first_image = tl.program_id(0) * BLOCK_G
    image = first_image + image_of_tile
    part = tl.program_id(1)
    dimension = tl.arange(0, BLOCK_D)
    # Beyond the last image or row is the last one again, whose numbers are not used: to know which
    # of the loads to make would take registers.
    loaded_image = tl.minimum(image, num_images - 1)
    image_place = loaded_image.to(tl.int64)[:, None] * SIZE + dimension[None, :]
    embedding = load_rows(embedding_ptr + image_place, dimension, SIZE, BLOCK_D)
    column = tl.load(column_ptr + loaded_image)
    u = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    nearest = tl.full([BLOCK_G], float("-inf"), tl.float32)
    row_of_tile = tl.arange(0, BLOCK_R)
    first_row = part * rows_of_part
    last_row = tl.minimum(first_row + rows_of_part, num_rows)
    for first in tl.range(first_row, last_row, BLOCK_R, num_stages=STAGES):
        row = first + row_of_tile
        is_row = row < last_row
        loaded_row = tl.minimum(row, last_row - 1)
        number = loaded_row.to(tl.int64)
        if SAMPLED:
            number = tl.load(number_ptr + loaded_row).to(tl.int64)
        weight_place = weight_ptr + number[:, None] * STRIDE + dimension[None, :]
        weight = load_rows(weight_place, dimension, SIZE, BLOCK_D)
        inverse = tl.load(inverse_ptr + loaded_row)
        share = tl.zeros([BLOCK_G, BLOCK_R], weight.dtype)
        part_total = tl.zeros([BLOCK_G], tl.float32)
        part_nearest = nearest
        if SPLIT_WARPS:
            # In a branch, the first product is not seen to be followed by the second, for the sake
            # of which Triton would give each warp whole rows, and the same rows to several warps.
            if always > 0:
                share, part_total, part_nearest = _shares(
                    embedding, weight, inverse, column, row, is_row, factor, shift, limit, FILTER
                )
        else:
            share, part_total, part_nearest = _shares(
                embedding, weight, inverse, column, row, is_row, factor, shift, limit, FILTER
            )
        total += part_total
        if NEAREST:
            nearest = tl.maximum(nearest, part_nearest)
        u = add_product(u, share, weight)
    is_image = image < num_images
    # One address of 64 bits, and distances of 32 from it, which take fewer registers.
    first_place = part.to(tl.int64) * num_images + first_image
    tl.store(part_sum_ptr + first_place + image_of_tile, total, mask=is_image)
    if NEAREST:
        tl.store(part_nearest_ptr + first_place + image_of_tile, nearest, mask=is_image)
    u_place = image_of_tile[:, None] * SIZE + dimension[None, :]
    in_image = is_image[:, None] & (dimension < SIZE)[None, :]
    tl.store(part_u_ptr + first_place * SIZE + u_place, u, mask=in_image)


def num_parts(num_blocks: int, at_a_time: int) -> int:
    """Into how many parts to cut the rows, so that few programs of those at a time are ever idle.

    The least that come within a twentieth of the best: each more is one more set of sums.
    """

    def rounds(parts: int) -> float:
        return triton.cdiv(num_blocks * parts, at_a_time) / parts

    choices = range(1, max(2, 4 * at_a_time // num_blocks + 1))
    best = min(map(rounds, choices))
    return next(parts for parts in choices if rounds(parts) <= 1.05 * best)


def sum_tiles(
    embedding_GD: torch.Tensor,
    weight_KX: torch.Tensor,
    inverse_S: torch.Tensor,
    column_G: torch.Tensor,
    index_S: torch.Tensor | None,
    *,
    factor: float,
    shift: float,
    limit: float | None,
    find_nearest: bool,
    sizes: TileSizes | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(Z exp(−shift) [G], U exp(−shift) [G, D], nearest_G), as `streaming.negative_sums` has them.

    Args:
        embedding_GD: unit embeddings, bf16, contiguous.
        weight_KX: the shard's centres, bf16, in the first D of its columns.
        inverse_S: 1/‖w_j‖ of the rows in use.
        column_G: each image's place among them; −1 if its class is on another rank.
        index_S: the rows in use; None: all.
        factor, shift, limit: of the logits in base 2; limit None: no filter.
        find_nearest: whether nearest_G is wanted.
        sizes: None: what suits the device.
    """
    num_images, size = embedding_GD.shape
    num_rows = len(inverse_S)
    sizes = sizes or sizes_of("sums", embedding_GD.device)
    num_blocks = triton.cdiv(num_images, sizes.images)
    num_tiles = triton.cdiv(num_rows, sizes.rows)
    parts = max(1, min(num_parts(num_blocks, num_programs(embedding_GD.device)), num_tiles))
    tiles_of_part = triton.cdiv(num_tiles, parts)
    part_PGD = inverse_S.new_empty(parts, num_images, size)
    part_PG = inverse_S.new_empty(parts, num_images)
    nearest_PG = torch.empty_like(part_PG) if find_nearest else part_PG
    _sum_tiles[(num_blocks, parts)](
        embedding_GD,
        weight_KX,
        inverse_S,
        column_G.int(),
        column_G if index_S is None else index_S,
        part_PGD,
        part_PG,
        nearest_PG,
        num_images,
        num_rows,
        tiles_of_part * sizes.rows,
        factor,
        shift,
        0.0 if limit is None else limit,
        1,
        FILTER=limit is not None,
        NEAREST=find_nearest,
        SAMPLED=index_S is not None,
        STRIDE=weight_KX.stride(0),
        **sizes.constants(size),
        num_warps=sizes.warps,
    )
    nearest_G = nearest_PG.amax(dim=0) if find_nearest else None
    return part_PG.sum(dim=0), part_PGD.sum(dim=0), nearest_G
