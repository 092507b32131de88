"""Random numbers that are functions of their place, not of what was drawn before.

The order of the images and every random change to one come from here, so they are the same for any
number of ranks, after a resume, and with any version of numpy.
"""

import numpy as np

MASK64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


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
