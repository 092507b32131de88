"""What the first pass keeps for the second, up to a number of bytes.

Shapes: G images on all ranks, R rows of one chunk.
"""

import torch

from kappaface_dist.head.softmax.rows import Rows


class LogitCache:
    """Q of the first pass's first chunks in bf16, for the second pass; recomputed beyond a budget.

    bf16 keeps 8 bits, so the centres' gradient is off by up to 2^-9 of each image's share; the loss
    and the embeddings' gradient are not touched.

    Attributes:
        peaks: what Q was shifted by, by a chunk's first row, where each image has its own shift.
    """

    def __init__(self, num_bytes: int = 0):
        self.num_bytes = num_bytes
        self.peaks: dict[int, torch.Tensor] = {}
        self._block: torch.Tensor | None = None
        self._chunks: dict[int, torch.Tensor] = {}
        self._used = 0

    @property
    def held_bytes(self) -> int:
        """Of the memory taken."""
        return 0 if self._block is None else self._block.nbytes

    def place(self, num_images: int, rows: Rows, first: int, last: int) -> torch.Tensor | None:
        """Where to put rows first..last-1 [G, R]; None if there is no room for them."""
        size = num_images * (last - first)
        if self._block is None:
            # Whole chunks, since a part of one is of no use to anybody.
            room = self.num_bytes // 2 // size * size
            block_size = min(room, num_images * len(rows))
            self._block = rows.weight_KD.new_empty(block_size, dtype=torch.bfloat16)
        if self._used + size > len(self._block):
            return None
        place = self._block[self._used : self._used + size].view(num_images, last - first)
        self._chunks[first] = place
        self._used += size
        return place

    def get(self, first: int, last: int) -> torch.Tensor | None:
        """Q of rows first..last-1 [G, R]; None if it was not kept, or for other rows (the chunks of
        micro-batches of other sizes are of other lengths).
        """
        kept_GR = self._chunks.get(first)
        return kept_GR if kept_GR is not None and kept_GR.shape[1] == last - first else None
