"""What all bootstraps over people share: the draws, and the intervals from the replicates.

Shapes: I identities, T thresholds, R replicates, X anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

NUM_REPLICATES = 1000
LEVEL = 0.95
# Points of the band around the ROC, per decade of the false accept rate.
BAND_POINTS = 10


@dataclass(frozen=True)
class Band:
    """The interval of the true accept rate along a ROC, at given false accept rates."""

    far_T: np.ndarray
    low_T: np.ndarray
    high_T: np.ndarray


def drawn_times(num_identities: int, num_replicates: int, seed: int) -> Iterator[np.ndarray]:
    """times_I of each replicate: how often each identity was drawn, with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(num_replicates):
        drawn = rng.integers(num_identities, size=num_identities)
        yield np.bincount(drawn, minlength=num_identities)


def percentiles(values_RX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the interval at LEVEL, of each column."""
    low, high = np.quantile(values_RX, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high
