"""Both passes by the kernels that write no logits: where they can run, and what they are handed.

A tile is what one program keeps in registers: the sums of some images over all rows in the first
pass, the gradient of some rows over all images in the second. The mathematics are those of
`streaming.py`; what the kernels do not have (`why_not`) goes chunk by chunk instead.
Shapes: G images on all ranks, D embedding size, S the rows in use, Y images of all micro-batches.
"""

import logging

import torch

from kappaface_dist.head.softmax.chunks import bf16_operand, row_lengths
from kappaface_dist.head.softmax.logit_cache import LogitCache
from kappaface_dist.head.softmax.loss import inverse_denominators
from kappaface_dist.head.softmax.products import warn_of_slow_products
from kappaface_dist.head.softmax.rows import Rows
from kappaface_dist.head.softmax.second_pass import MicroBatch
from kappaface_dist.head.softmax.settings import LOG2_E, Softmax
from kappaface_dist.head.softmax.streaming import NegativeSums
from kappaface_dist.head.softmax.tile_sizes import LARGEST_EMBEDDING, TileSizes

logger = logging.getLogger(__name__)


def why_not(softmax: Softmax, device: torch.device, embedding_size: int) -> str | None:
    """What of the settings these kernels cannot do, with the remedy; None if they can run."""
    if softmax.dtype != torch.bfloat16:
        return f"head.dtype is {softmax.dtype}: set it to bf16"
    if softmax.kernels(device) is None:
        return "there is no GPU with Triton here: take one"
    if embedding_size > LARGEST_EMBEDDING:
        return (
            f"embeddings have {embedding_size} numbers, and these kernels hold {LARGEST_EMBEDDING}:"
            " set backbone.embedding_size to less"
        )
    if softmax.centre_dtype != torch.bfloat16 and not softmax.splits_centres(device):
        return "the centres are whole fp32 numbers: set split_centres to true"
    if softmax.logit_cache_bytes:
        return (
            f"head.logit_cache_bytes is {softmax.logit_cache_bytes}, and there are no logits to"
            " keep: set it to 0"
        )
    if softmax.skip_mass:
        return f"head.skip_mass is {softmax.skip_mass}, which needs the sums of chunks: set it to 0"
    if softmax.largest_cosine != 1.0:
        return "the margin changes the other classes' logits: set margin.name to another"
    if softmax.sub_centres > 1:
        return f"head.sub_centres is {softmax.sub_centres}: set it to 1"
    if softmax.needs_peaks:
        return (
            f"margin.scale is {softmax.scale}, which takes a shift for each image: set it to 72 or"
            " less"
        )
    return None


def check_kernels(
    softmax: Softmax,
    device: torch.device,
    embedding_size: int,
    optimizer_numbers: dict[str, float] | None,
) -> None:
    """Say what of the settings runs otherwise than they read.

    Args:
        optimizer_numbers: as `RowOptimizer.fused_numbers` gives them.

    Raises:
        ValueError: tiles are asked for, and cannot run.
    """
    warn_of_slow_products(softmax.dtype, device.type)
    if softmax.sub_centres > 1 and softmax.fused != "tiles" and softmax.kernels(device) is not None:
        logger.info(
            "head.sub_centres is %d: the nearest of several centres is found without Triton's"
            " kernels, which update the centres alone",
            softmax.sub_centres,
        )
    if softmax.fused != "tiles":
        return
    reason = why_not(softmax, device, embedding_size)
    if reason is None and optimizer_numbers is None:
        reason = "the optimizer's formula is not that of sgd: set optimizer.name to sgd"
    if reason is not None:
        raise ValueError(f"head.fused is tiles, but {reason}, or head.fused to auto")


def takes(softmax: Softmax, rows: Rows, embedding_GD: torch.Tensor) -> bool:
    """Whether these kernels run, rather than the chunks."""
    device, (num_images, size) = embedding_GD.device, embedding_GD.shape
    kernels = softmax.kernels(device) if softmax.fused in ("auto", "tiles") else None
    if kernels is None or not len(rows) or why_not(softmax, device, size) is not None:
        return False
    return softmax.fused == "tiles" or kernels.fastest(device, size, num_images) == "tiles"


def exponents(softmax: Softmax) -> dict[str, float | None]:
    """How both kernels make exponents of products."""
    limit = softmax.filter_threshold
    return {
        "factor": softmax.scale * LOG2_E,
        "shift": softmax.shift * LOG2_E,
        "limit": None if limit is None else limit * softmax.scale * LOG2_E,
    }


def tiled_sums(
    embedding_GD: torch.Tensor,
    rows: Rows,
    column_G: torch.Tensor,
    softmax: Softmax,
    *,
    find_nearest: bool = False,
    sizes: TileSizes | None = None,
) -> NegativeSums:
    """As `streaming.negative_sums`, without a chunk of logits."""
    kernels = softmax.kernels(embedding_GD.device)
    assert kernels is not None, "tiled_sums without Triton"
    inverse_S = row_lengths(rows, embedding_GD.shape[1])
    sum_G, sum_GD, nearest_G = kernels.sum_tiles(
        embedding_GD.to(torch.bfloat16),
        bf16_operand(rows),
        inverse_S,
        column_G,
        rows.index_S,
        **exponents(softmax),
        find_nearest=find_nearest,
        sizes=sizes,
    )
    return NegativeSums(sum_G, sum_GD, LogitCache(), [], nearest_G, None, inverse_S)


def tiled_update(
    batches: list[MicroBatch],
    softmax: Softmax,
    momentum_KD: torch.Tensor | None,
    target_row_X: torch.Tensor,
    target_term_XD: torch.Tensor,
    skip: torch.Tensor | None,
    numbers: dict[str, float],
    sizes: TileSizes | None = None,
) -> None:
    """The second pass over all rows in use, and their update, in place.

    Args:
        numbers: of the optimizer and of `Rounding`, by the names that the kernel has for them.
    """
    rows, kernels = batches[0].rows, softmax.kernels(batches[0].embedding_GD.device)
    assert kernels is not None, "tiled_update without Triton"
    weights = []
    for batch in batches:
        factor = batch.factor * softmax.scale / len(batch.column_G)
        weights.append(inverse_denominators(batch.log_denominator_G) * factor)
    inverse_S = batches[0].inverse_S
    if inverse_S is None:
        inverse_S = row_lengths(rows, batches[0].embedding_GD.shape[1])
    kernels.update_tiles(
        rows.weight_KD,
        momentum_KD,
        inverse_S,
        rows.index_S,
        torch.cat([batch.embedding_GD for batch in batches]).to(torch.bfloat16),
        torch.cat([batch.column_G for batch in batches]),
        torch.cat(weights),
        target_row_X,
        target_term_XD,
        split=rows.split,
        **exponents(softmax),
        skip=skip,
        sizes=sizes,
        **numbers,
    )
