"""The rows of the shard that a step uses, and how their centres lie in memory.

Plain: fp32 [K, D]. Split, for bf16 products: the same bytes with each row's upper 16-bit halves
first, its lower halves behind them. The upper half of an fp32 number is a bf16 number (truncated),
so the matrix products read their operand in place, and no centre is stored or converted twice.
Or bf16 alone, rounded as in `rounding.py`.
Shapes: K classes of this shard, R rows of one chunk, S the rows in use (all K, or those that were
sampled), D embedding size, X anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Rows rearranged at a time when the layout of the whole shard changes; of a large one this share.
LAYOUT_ROWS, LAYOUT_SHARE = 4096, 1 / 1024


def value_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which centres held in dtype are computed with."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def split_rows(weight_RD: torch.Tensor) -> torch.Tensor:
    """fp32 rows -> the same bits, upper halves first; again [R, D] fp32 by type, not by value."""
    bits_RD = weight_RD.contiguous().view(torch.int32)
    halves = torch.cat([(bits_RD >> 16).to(torch.int16), bits_RD.to(torch.int16)], dim=1)
    return halves.view(torch.float32)


def join_rows(split_RD: torch.Tensor) -> torch.Tensor:
    """The inverse of `split_rows`, exact."""
    upper_RD, lower_RD = split_RD.contiguous().view(torch.int16).chunk(2, dim=1)
    return ((upper_RD.int() << 16) | (lower_RD.int() & 0xFFFF)).view(torch.float32)


@dataclass(frozen=True)
class Rows:
    """The rows of the shard that a step uses: all of them, or those of an index.

    Attributes:
        weight_KD: the shard's raw centres.
        index_S: sorted row numbers, or None for all rows.
        split: whether weight_KD is split into halves.
    """

    weight_KD: torch.Tensor
    index_S: torch.Tensor | None = None
    split: bool = False

    def __len__(self) -> int:
        return len(self.weight_KD if self.index_S is None else self.index_S)

    def chunks(self, size: int) -> Iterator[tuple[int, int]]:
        for first in range(0, len(self), size):
            yield first, min(first + size, len(self))

    def select(self, tensor_KX: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Rows first..last-1 of a tensor with a row per class: a view, or a copy when sampled."""
        if self.index_S is None:
            return tensor_KX[first:last]
        return tensor_KX.index_select(0, self.index_S[first:last])

    def put_back(
        self, tensor_KX: torch.Tensor, first: int, last: int, rows_RX: torch.Tensor
    ) -> None:
        """Write what `select` gave, after it was changed in place."""
        if self.index_S is not None:
            tensor_KX.index_copy_(0, self.index_S[first:last], rows_RX)

    def numbers(self, first: int, last: int) -> torch.Tensor:
        """Which rows of the shard first..last-1 are, int64."""
        if self.index_S is None:
            return torch.arange(first, last, device=self.weight_KD.device)
        return self.index_S[first:last]

    def operand(self, chunk_RD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What the matrix products read of a chunk that `select` gave, in dtype."""
        if self.split:
            return chunk_RD.view(torch.bfloat16)[:, : chunk_RD.shape[1]]
        return chunk_RD.to(dtype)

    def centres(self, chunk_RD: torch.Tensor) -> torch.Tensor:
        """The values of a chunk: itself, or a copy when split or bf16."""
        return join_rows(chunk_RD) if self.split else chunk_RD.to(value_dtype(chunk_RD.dtype))

    def centres_of(self, row_G: torch.Tensor) -> torch.Tensor:
        """Raw centres [G, D] of the images' classes, by row of the whole shard."""
        return self.centres(self.weight_KD.index_select(0, row_G))


class Centres:
    """The centres of a shard, in the layout that was asked for last.

    Attributes:
        sub_centres: rows of each class.
    """

    def __init__(self, weight_KD: torch.Tensor, split: bool, sub_centres: int):
        self.device, self.sub_centres = weight_KD.device, sub_centres
        self._weight_KD = weight_KD
        self._wants_split = split
        self._is_split = False

    def plain(self) -> torch.Tensor:
        """The centres by value, for reading and writing until the next call of `arrange`."""
        self._change(split=False)
        return self._weight_KD

    def arrange(self) -> None:
        """Back to the layout that the passes use."""
        self._change(split=self._wants_split)

    def rows(self, index_S: torch.Tensor | None = None) -> Rows:
        self.arrange()
        return Rows(self._weight_KD, index_S, self._is_split)

    def _change(self, *, split: bool) -> None:
        if split == self._is_split:
            return
        change = split_rows if split else join_rows
        step = max(LAYOUT_ROWS, int(len(self._weight_KD) * LAYOUT_SHARE))
        for first in range(0, len(self._weight_KD), step):
            rows = slice(first, first + step)
            self._weight_KD[rows] = change(self._weight_KD[rows])
        self._is_split = split
