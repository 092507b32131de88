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
        hoist: let the compiler compute before the second pass's loop what is the same in all of
            it. On a B200 these are the two addresses of each of 40 products, in up to 144 registers
            of which h needs some at the end: 112 to 128 bytes were spilt.
    """

    images: int = 64
    rows: int = 64
    warps: int = 8
    stages: int = 2
    split_warps: bool = True
    hoist: bool = True

    def constants(self, size: int) -> dict[str, int]:
        """Of both kernels, for embeddings of this size."""
        return {
            "SIZE": size,
            "SPLIT_WARPS": self.split_warps,
            "STAGES": self.stages,
            "BLOCK_G": self.images,
            "BLOCK_R": self.rows,
            "BLOCK_D": block_of(size),
        }

    def update_constants(self, size: int) -> dict[str, int]:
        """Of the second pass's kernel."""
        # 32 values of each of an update's tensors a thread: h is no longer in registers.
        rows_at_a_time = max(1, 32 * 32 * self.warps // block_of(size))
        # Rows that are no multiple of 16 bytes have addresses of more and shorter loads.
        hoist = self.hoist and size % 8 == 0
        return {
            **self.constants(size),
            "HOIST": hoist,
            "BLOCK_U": min(self.rows, rows_at_a_time),
        }


# Of the kernel of each pass, by compute capability: what fits the registers and the shared memory
# (`tests/unit/head/softmax/test_tile_sizes.py`). SMALL is for GPUs with less of the latter.
HOPPER = TileSizes()
BLACKWELL = TileSizes(stages=1, split_warps=False, hoist=False)
SMALL = TileSizes(images=32, rows=32, stages=1, split_warps=False)
SIZES = {
    "sums": {
        80: TileSizes(images=32, rows=64, stages=1, split_warps=False),
        # On an H100 rows=128 with one stage took 0.90 of this, but 0.99 with the filter and rank-1
        # on, where it spills.
        90: HOPPER,
        100: HOPPER,
        103: HOPPER,
    },
    "update": {
        80: TileSizes(images=64, rows=32, stages=1, split_warps=False),
        90: HOPPER,  # the fastest of seven on an H100
        100: BLACKWELL,
        103: BLACKWELL,
    },
}


def block_of(size: int) -> int:
    """Numbers of an embedding as a block has them: a power of two."""
    return max(16, 1 << (size - 1).bit_length())


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
