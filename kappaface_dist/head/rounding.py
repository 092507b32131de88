"""Stochastic rounding to bf16, as a function of seed, step, class and column.

A centre moves by less than half a step of bf16 in most updates, and a sum of embeddings soon grows
by less with each: rounding to the nearest would undo that. Rounded up with the share of the step
that is left as probability, they move by the right amount on average. A run that is resumed, on any
number of ranks, rounds alike.
Shapes: G images on all ranks, K classes of this shard, R rows of one chunk, D embedding size, W
pairs of columns.
"""

from dataclasses import dataclass

import torch

from kappaface_dist.counter_random import bits32, keys32, mix64

# Rounded at a time: fewer rows cost a processor more calls, more take more memory beside them.
ROUNDED_ROWS = 1024
ROW, COLUMN = 1, 2


@dataclass(frozen=True)
class Rounding:
    """Of one step.

    Attributes:
        row_key, column_key: of the step's random numbers.
        first_class: of the shard.
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
        size = weight_RD.shape[1]
        pair_W = torch.arange((size + 1) // 2, device=weight_RD.device)
        column_W = keys32(self.column_key, pair_W)
        for first in range(0, len(weight_RD), ROUNDED_ROWS):
            rows = slice(first, first + ROUNDED_ROWS)
            part_RD = weight_RD[rows]
            noise_RW = bits32(keys32(self.row_key, row_R[rows] + self.first_class), column_W)
            noise_RW &= -part_RD.sum(dim=1, keepdim=True).isfinite().int()
            bits_RD = part_RD.view(torch.int32)
            bits_RD += noise_RW.view(torch.uint16)[:, :size].int()
            out.view(torch.int16)[rows] = bits_RD.bitwise_right_shift_(16)

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
