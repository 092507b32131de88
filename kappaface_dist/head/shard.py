"""Which classes a rank owns, and where their centres start.

The partition is torch.chunk's: ceil(C/N) classes each, the last ranks may own fewer or none. It is
what torch.distributed.checkpoint assumes of a row-sharded tensor.
Shapes: C all classes, K classes of this shard, D embedding size.
"""

from concurrent.futures import ThreadPoolExecutor

import torch

from kappaface_dist.counter_random import mix64
from kappaface_dist.parallel.cores import threads_per_rank

# Centres are drawn in blocks of this many classes, each with a generator of its own.
INIT_BLOCK = 1024
INIT_STD = 0.01


def shard_classes(num_classes: int, rank: int, num_ranks: int) -> range:
    """The consecutive classes that rank owns, of 0..num_classes-1."""
    size = -(-num_classes // num_ranks)
    return range(min(rank * size, num_classes), min((rank + 1) * size, num_classes))


def initial_centres(
    classes: range, embedding_size: int, seed: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Normal centres [K, D] that depend on (seed, class) alone, so on no number of ranks."""
    weight_KD = torch.empty(len(classes), embedding_size, dtype=dtype, device=device)

    def draw(block: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(mix64(seed, block))
        # By a function that keeps to its own thread.
        return torch.empty(INIT_BLOCK, embedding_size).normal_(0.0, INIT_STD, generator=generator)

    first_block = classes.start // INIT_BLOCK
    blocks = range(first_block, -(-classes.stop // INIT_BLOCK) if len(classes) else first_block)
    threads = threads_per_rank()
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(blocks), threads):
            some = blocks[first : first + threads]
            for block, rows in zip(some, pool.map(draw, some), strict=True):
                start = block * INIT_BLOCK
                low, high = max(classes.start, start), min(classes.stop, start + INIT_BLOCK)
                weight_KD[low - classes.start : high - classes.start] = rows[
                    low - start : high - start
                ]
    return weight_KD
