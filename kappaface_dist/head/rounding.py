"""Stochastic rounding to bf16, as a function of seed, step, class and column.

A centre moves by less than half a step of bf16 in most updates, and a sum of embeddings soon grows
by less with each: rounding to the nearest would undo that. Rounded up with the share of the step
that is left as probability, they move by the right amount on average. A run that is resumed, on any
number of ranks, rounds alike.
Shapes: G images on all ranks, K classes of this shard, R rows of one chunk, D embedding size, W
pairs of columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kappaface_dist.counter_random import bits32, keys32, mix64

# Rounded at a time: fewer rows cost a processor more calls, more take more memory beside them.
ROUNDED_ROWS = 1024
KEYED_ROWS = 16 * ROUNDED_ROWS
ROW, COLUMN = 1, 2


@dataclass(frozen=True)
class Rounding:
    """Of one step.

    Attributes:
        row_key, column_key: of the step's random numbers.
        first_class: of the shard; its first row, where a class has several.
    """

    row_key: int
    column_key: int
    first_class: int

    @staticmethod
    def of_step(seed: int, step: int, first_class: int) -> "Rounding":
        return Rounding(mix64(seed, step, ROW), mix64(seed, step, COLUMN), first_class)

    def round(self, weight_RD: torch.Tensor, row_R: torch.Tensor, out: torch.Tensor) -> None:
        """Round fp32 rows into out, bf16 [R, D]; weight_RD is used up.

        A number that bf16 has stays as it is. A row with one that is not finite is cut off instead:
        a random number added to its bits could make NaN a number.

        Args:
            row_R: the rows' numbers in the shard.
        """
        Rounder(self, lambda first, last: row_R[first:last], len(row_R)).round(weight_RD, 0, out)

    def row_keys(self, row_R: torch.Tensor) -> torch.Tensor:
        return keys32(self.row_key, row_R + self.first_class)

    def column_keys(self, size: int, device: torch.device) -> torch.Tensor:
        """Of the pairs of columns, int32 [W]."""
        return keys32(self.column_key, torch.arange((size + 1) // 2, device=device))

    def add(self, sum_KD: torch.Tensor, row_G: torch.Tensor, value_GD: torch.Tensor) -> None:
        """sum_KD[row_i] += value_i, of a shard's rows in bf16: each row is rounded once.

        Nothing waits for the device: all values of a row, next to each other, write the same.
        """
        row_G, order_G = row_G.sort(stable=True)
        new_G = torch.ones_like(row_G)
        new_G[1:] = row_G[1:] != row_G[:-1]
        place_G = new_G.cumsum(0) - 1
        total_GD = torch.zeros_like(value_GD).index_add_(0, place_G, value_GD[order_G])
        sum_GD = sum_KD.index_select(0, row_G).float() + total_GD.index_select(0, place_G)
        rounded_GD = torch.empty_like(sum_GD, dtype=torch.bfloat16)
        self.round(sum_GD, row_G, rounded_GD)
        sum_KD.index_copy_(0, row_G, rounded_GD)


class Rounder:
    """Rounds rows of a shard, chunk after chunk, as `Rounding.round` does.

    A processor spends more time on calls and on fresh memory than on random bits: keys are computed
    for many rows at once, and the buffers are kept.

    Args:
        numbers: which rows of the shard are first..last-1 of those that are rounded, int64.
        num_rows: of them.
    """

    def __init__(
        self, rounding: Rounding, numbers: Callable[[int, int], torch.Tensor], num_rows: int
    ):
        self._rounding, self._numbers, self._num_rows = rounding, numbers, num_rows
        self._first, self._key_X = 0, torch.empty(0, dtype=torch.int32)
        self._column_W: torch.Tensor | None = None
        self._buffers: tuple[torch.Tensor, ...] = ()

    def round(self, weight_RD: torch.Tensor, first: int, out: torch.Tensor) -> None:
        """Round fp32 rows first..first+R-1 into out, bf16 [R, D]; weight_RD is used up."""
        size, device = weight_RD.shape[1], weight_RD.device
        if self._column_W is None:
            self._column_W = self._rounding.column_keys(size, device)
            shape = min(ROUNDED_ROWS, self._num_rows), len(self._column_W)
            bits_RW = torch.empty(shape, dtype=torch.int32, device=device)
            noise_RD = bits_RW.new_empty(shape[0], size)
            self._buffers = bits_RW, torch.empty_like(bits_RW), noise_RD
        for start in range(0, len(weight_RD), ROUNDED_ROWS):
            part_RD = weight_RD[start : start + ROUNDED_ROWS]
            bits_RW, spare_RW, noise_RD = (buffer[: len(part_RD)] for buffer in self._buffers)
            key_R = self._keys(first + start, len(part_RD))
            bits32(key_R, self._column_W, out=bits_RW, spare=spare_RW)
            # Not asked of a GPU, which would have to be waited for.
            if part_RD.is_cuda or not torch.stack(part_RD.aminmax()).isfinite().all():
                bits_RW &= -part_RD.isfinite().all(dim=1, keepdim=True).int()
            noise_RD.copy_(bits_RW.view(torch.uint16)[:, :size])
            noise_RD += part_RD.view(torch.int32)
            noise_RD.bitwise_right_shift_(16)
            out.view(torch.int16)[start : start + len(part_RD)] = noise_RD

    def _keys(self, first: int, num_rows: int) -> torch.Tensor:
        if not self._first <= first <= first + num_rows <= self._first + len(self._key_X):
            last = min(self._num_rows, first + max(num_rows, KEYED_ROWS))
            self._first, self._key_X = first, self._rounding.row_keys(self._numbers(first, last))
        start = first - self._first
        return self._key_X[start : start + num_rows]
