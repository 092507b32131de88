"""How the kernels that write no logits cut their work, by the device they run on."""

from dataclasses import dataclass

import torch

# Embeddings longer than this have sums that no multiprocessor's registers hold.
LARGEST_EMBEDDING = 512
# Programs of the interpreter: more than one, so that what they share is tested.
INTERPRETED_PROGRAMS = 3


@dataclass(frozen=True)
class TileSizes:
    """Of one kernel.

    Attributes:
        images, rows: of a tile of logits; powers of two, 16 or more.
        warps: of a program.
        stages: tiles of what it walks over that are in shared memory at a time.
        split_warps: let the warps share the first product's columns too, where they would otherwise
            compute some of it twice.
    """

    images: int = 64
    rows: int = 64
    warps: int = 8
    stages: int = 2
    split_warps: bool = True


# Of the kernel of each pass, by compute capability: what fits the registers and the shared memory
# (`tests/unit/head/softmax/test_tiles.py`). SMALL is for GPUs with less of the latter.
HOPPER = TileSizes()
SMALL = TileSizes(images=32, rows=32, stages=1, split_warps=False)
SIZES = {
    "sums": {
        80: TileSizes(images=32, rows=64, stages=1, split_warps=False),
        # On an H100 rows=128 with one stage took 0.88 of this, but spilt with the filter on: while
        # loads still asked whether their row exists, so it is to be tried again.
        90: HOPPER,
        100: HOPPER,
        103: HOPPER,
    },
    "update": {
        80: TileSizes(images=64, rows=32, stages=1, split_warps=False),
        90: HOPPER,  # the fastest of eight on an H100
        100: TileSizes(stages=1, split_warps=False),
        103: TileSizes(stages=1, split_warps=False),
    },
}


def sizes_of(kernel: str, device: torch.device) -> TileSizes:
    """What suits a device; kernel: "sums" of the first pass, "update" of the second."""
    if device.type != "cuda":
        return HOPPER
    major, minor = torch.cuda.get_device_capability(device)
    return SIZES[kernel].get(10 * major + minor, SMALL)


def num_programs(device: torch.device) -> int:
    """That run at a time: one on each multiprocessor, whose registers it fills."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count
