"""Rounding of centres to bf16: right on average, and a function of seed, step, class and column."""

import pytest
import torch

from kappaface_dist.head.rounding import ROUNDED_ROWS, Rounding

R, D = ROUNDED_ROWS + 44, 33  # two blocks, an odd number of columns


def rounded(weight_RD, row_R, rounding):
    out_RD = torch.empty_like(weight_RD, dtype=torch.bfloat16)
    rounding.round(weight_RD.clone(), row_R, out_RD)
    return out_RD


def numbers(seed=0):
    return torch.randn(R, D, generator=torch.Generator().manual_seed(seed))


def test_it_is_right_on_average_and_one_of_the_two_neighbours():
    weight_RD, row_R = numbers(), torch.arange(R)
    upper = weight_RD.view(torch.int32) >> 16 << 16
    lower_RD, higher_RD = upper.view(torch.float32), (upper + (1 << 16)).view(torch.float32)
    step_RD = higher_RD - lower_RD
    share_RD = ((weight_RD - lower_RD) / step_RD).double()
    total_RD, num_steps = torch.zeros(R, D, dtype=torch.float64), 200
    for step in range(num_steps):
        out_RD = rounded(weight_RD, row_R, Rounding.of_step(3, step, 0)).float()
        assert ((out_RD == lower_RD) | (out_RD == higher_RD)).all()
        total_RD += (out_RD == higher_RD).double()
    # Each count is binomial; z has mean 0 and deviation 1 over the numbers that can go both ways.
    usual_RD = (share_RD > 0.02) & (share_RD < 0.98)
    deviation_RD = (num_steps * share_RD * (1 - share_RD)).sqrt()
    z = ((total_RD - num_steps * share_RD) / deviation_RD)[usual_RD]
    assert abs(z.mean()) < 4 / len(z) ** 0.5
    assert abs(z.square().mean() - 1) < 4 * (2 / len(z)) ** 0.5
    assert z.abs().max() < 5.5


def test_rows_columns_and_steps_are_independent():
    """Half-way numbers go up or down like tossed coins, whose products are coins again."""
    half_RD = torch.full((256, 64), 1.0 + 2.0**-8)
    up = torch.stack(
        [
            (rounded(half_RD, torch.arange(256), Rounding.of_step(9, step, 0)) > 1).double() * 2 - 1
            for step in range(8)
        ]
    )
    products = {
        "next column": up[:, :, 1:] * up[:, :, :-1],
        "next row": up[:, 1:] * up[:, :-1],
        "next step": up[1:] * up[:-1],
        "rectangle": up[:, 1:, 2:] * up[:, :-1, 2:] * up[:, 1:, :-2] * up[:, :-1, :-2],
        "each": up,
    }
    for name, values in products.items():
        assert abs(values.mean()) < 4.5 / values.numel() ** 0.5, name


def test_it_depends_on_the_class_whatever_the_shard_and_the_chunk():
    weight_RD, row_R = numbers(), torch.arange(R)
    whole_RD = rounded(weight_RD, row_R, Rounding.of_step(1, 5, 100))
    # The rows of another rank, in an order of their own, some of them left out.
    some_S = torch.randperm(R, generator=torch.Generator().manual_seed(1))[:50]
    part_SD = rounded(weight_RD[some_S], some_S + 60, Rounding.of_step(1, 5, 40))
    assert torch.equal(part_SD, whole_RD[some_S])
    for seed, step, first in ((2, 5, 100), (1, 6, 100), (1, 5, 101)):
        other_RD = rounded(weight_RD, row_R, Rounding.of_step(seed, step, first))
        assert 0.2 < (other_RD != whole_RD).double().mean() < 0.5


def test_one_number_by_hand():
    """From whole numbers in Python, after the formula in the docstrings."""

    def mix(state):
        for factor, places in ((0x7FEB352D, 15), (0x846CA68B, 16)):
            state = state * factor & 0xFFFFFFFF
            state ^= state >> places
        return state

    def key(word, counter):
        state = (counter * 0x9E3779B9 + word) & 0xFFFFFFFF
        return mix(state ^ state >> 16)

    rounding = Rounding.of_step(4, 2, 7)
    row_key, column_key = rounding.row_key & 0xFFFFFFFF, rounding.column_key & 0xFFFFFFFF
    weight_RD = numbers()
    out_RD = rounded(weight_RD, torch.arange(R), rounding)
    for row, column in ((0, 0), (0, 1), (5, 32), (R - 1, 17)):
        bits32 = mix(key(row_key, row + 7) ^ key(column_key, column // 2))
        noise = bits32 >> 16 if column % 2 else bits32 & 0xFFFF
        bits = weight_RD[row, column].view(torch.int32).item() & 0xFFFFFFFF
        expected = (bits + noise) >> 16 & 0xFFFF
        assert out_RD[row, column].view(torch.int16).item() & 0xFFFF == expected


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -0.0078125, torch.inf, -torch.inf])
def test_what_bf16_has_stays(value):
    weight_RD = numbers().bfloat16().float()
    weight_RD[3, 4] = value
    for step in range(5):
        out_RD = rounded(weight_RD, torch.arange(R), Rounding.of_step(0, step, 0))
        assert torch.equal(out_RD.view(torch.int16), weight_RD.bfloat16().view(torch.int16))


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FC00000, -1, -0x400000])
def test_nan_stays_nan_whatever_its_bits(bits):
    """GPUs' own NaN is all ones: a random number added would make it −0."""
    weight_RD = numbers()
    weight_RD.view(torch.int32)[3, 4] = bits
    for step in range(5):
        out_RD = rounded(weight_RD, torch.arange(R), Rounding.of_step(0, step, 0))
        assert out_RD[3, 4].isnan()
        assert out_RD.isnan().sum() == 1
