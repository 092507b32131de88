"""Both forms of the normalisation, on every value that a pixel has."""

import numpy as np
import pytest
import torch

from kappaface_dist.data.normalisation import normalise, normalise_image


@pytest.fixture
def pixels_BHW3():
    """All 256 values, each several times, at places of no order."""
    values = np.arange(2 * 16 * 24 * 3) % 256
    return np.random.default_rng(0).permutation(values).astype(np.uint8).reshape(2, 16, 24, 3)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.preserve_format])
def test_both_forms_are_the_formula_to_the_last_bit(pixels_BHW3, memory_format):
    # x - 127.5 is exact in either precision: what is left is one rounding.
    expected = ((pixels_BHW3.astype(np.float64) - 127.5) / 127.5).astype(np.float32)
    expected_B3HW = expected.transpose(0, 3, 1, 2)
    found = normalise(torch.from_numpy(pixels_BHW3), memory_format)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), expected_B3HW)
    out_3HW = np.empty((3, 16, 24), dtype=np.float32)
    normalise_image(pixels_BHW3[0], out_3HW)
    np.testing.assert_array_equal(out_3HW, expected_B3HW[0])


def test_the_order_in_memory_is_what_was_asked_for(pixels_BHW3):
    pixels = torch.from_numpy(pixels_BHW3)
    assert normalise(pixels).is_contiguous()
    kept = normalise(pixels, torch.preserve_format)
    assert kept.is_contiguous(memory_format=torch.channels_last)
