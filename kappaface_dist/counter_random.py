"""Random numbers that are functions of their place, not of what was drawn before.

The order of the images and every random change to one come from here, so they are the same for any
number of ranks, after a resume, and with any version of numpy.
"""

import numpy as np
import torch

MASK64, MASK32 = (1 << 64) - 1, (1 << 32) - 1
GOLDEN = 0x9E3779B97F4A7C15
GOLDEN32 = 0x9E3779B9
# Factors of a 32-bit mix (Wellons' lowbias32); `kernels.py` has them too.
MIX32 = (0x7FEB352D, 0x846CA68B)


def mix64(*words: int) -> int:
    """One well-mixed 64-bit number from several (the finaliser of splitmix64, word by word)."""
    state = 0
    for word in words:
        state = (state + (word & MASK64) + GOLDEN) & MASK64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK64
        state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK64
        state ^= state >> 31
    return state


def uniform(seed: int, purpose: int, counter_B: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1), float64, one for each counter, independent for each seed and purpose."""
    state_B = counter_B.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(mix64(seed, purpose))
    state_B = (state_B ^ state_B >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    state_B = (state_B ^ state_B >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    state_B = state_B ^ state_B >> np.uint64(31)
    return (state_B >> np.uint64(11)).astype(np.float64) / (1 << 53)


def normal(seed: int, counter_X: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers, float64, one for each counter (int64), on the counters' device.

    The same bits as `uniform` has with purpose 0, through the normal distribution's quantiles.
    """
    state_X = counter_X * _signed(GOLDEN) + _signed(mix64(seed, 0))
    state_X = (state_X ^ _shift(state_X, 30)) * _signed(0xBF58476D1CE4E5B9)
    state_X = (state_X ^ _shift(state_X, 27)) * _signed(0x94D049BB133111EB)
    state_X = state_X ^ _shift(state_X, 31)
    # In the middle of each step of 2^-53: 0 and 1 would have infinite quantiles.
    return torch.special.ndtri((_shift(state_X, 12).double() + 0.5) / (1 << 52))


def keys32(key: int, counter_X: torch.Tensor) -> torch.Tensor:
    """32 well-mixed bits for each counter (int64), as int32, on the counters' device.

    Args:
        key: 64 bits, of which the lower 32 count.
    """
    state_X = counter_X.to(torch.int32) * _signed(GOLDEN32, 32) + _signed(key & MASK32, 32)
    state_X ^= _shift(state_X, 16, 32)
    return _mix32(state_X, torch.empty_like(state_X))


def bits32(
    row_R: torch.Tensor, column_W: torch.Tensor, out: torch.Tensor, spare: torch.Tensor
) -> None:
    """32 random bits for each place of a matrix, from `keys32` of its rows and of its columns.

    All work is in 32 bits, which a processor takes eight at a time.

    Args:
        out: where they go, int32 [R, W].
        spare: a buffer like it.
    """
    _mix32(torch.bitwise_xor(row_R[:, None], column_W, out=out), spare)


def _mix32(state_X: torch.Tensor, spare_X: torch.Tensor) -> torch.Tensor:
    """In place: multiply, shift, multiply, shift."""
    for factor, places in zip(MIX32, (15, 16), strict=True):
        state_X.mul_(_signed(factor, 32))
        torch.bitwise_right_shift(state_X, places, out=spare_X)
        state_X ^= spare_X.bitwise_and_((1 << (32 - places)) - 1)
    return state_X


def _signed(word: int, num_bits: int = 64) -> int:
    """The number with the same bits that a signed type has."""
    return word - (word >> (num_bits - 1) << num_bits)


def _shift(state_X: torch.Tensor, places: int, num_bits: int = 64) -> torch.Tensor:
    """Right shift that brings in zeros, not the sign."""
    return (state_X >> places) & ((1 << (num_bits - places)) - 1)
