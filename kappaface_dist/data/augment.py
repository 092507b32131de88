"""Random changes to training images, the same whichever way they are decoded.

What happens to an image is a function of (seed, position in the stream) alone.
Shapes: B images on this rank.
"""

from enum import IntEnum

import numpy as np

from kappaface_dist.data.counter_random import uniform

PRESETS = ("none", "flip")


class Purpose(IntEnum):
    """Which random number is meant; the numbers are part of what a seed stands for."""

    FLIP = 1


def check_preset(name: str) -> None:
    """Raise ValueError if there is no preset of this name."""
    if name not in PRESETS:
        raise ValueError(f"data.augment is {name!r}, the presets are: {', '.join(PRESETS)}")


def draw_flips(preset: str, seed: int, position_B: np.ndarray) -> np.ndarray:
    """Which images are mirrored: bool [B], one in two with "flip", none with "none"."""
    if preset == "none":
        return np.zeros(len(position_B), dtype=bool)
    return uniform(seed, Purpose.FLIP, position_B) < 0.5
