"""Means over seeds with their intervals, and differences seed by seed."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kappaface_dist.margin_study.arms import REFERENCE

LEVEL = 0.95


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t for a probability of at least one half.

    With t = √ν tan θ the density becomes proportional to cos^(ν−1) θ, which is summed up.
    """
    assert 0.5 <= probability < 1.0
    assert degrees >= 1
    theta = np.linspace(0.0, math.pi / 2, 200_001)
    density = np.cos(theta) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    place = np.interp(probability - 0.5, mass / mass[-1] / 2, theta)
    return math.sqrt(degrees) * math.tan(place)


def mean_interval(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Mean and 95 % confidence interval, mean ± t s / √n; no interval from a single value."""
    values_S = np.asarray(values, dtype=np.float64)
    mean = float(values_S.mean())
    if len(values_S) < 2:
        return {"mean": mean, "interval": None}
    quantile = t_quantile((1 + LEVEL) / 2, len(values_S) - 1)
    half = quantile * float(values_S.std(ddof=1)) / math.sqrt(len(values_S))
    return {"mean": mean, "interval": [mean - half, mean + half]}


def compare(
    arms: dict[str, dict[str, list[float]]], reference: str = REFERENCE
) -> dict[str, dict[str, Any]]:
    """Differences to one arm, paired by seed, of all the others.

    Args:
        arms: name -> `all` and `small`, accuracies by seed.
        reference: the arm that is subtracted.

    Returns:
        name -> mean and interval of the difference on all pairs, and `small` with its own.
    """

    def difference(name: str, pairs: str) -> dict[str, Any]:
        return mean_interval(np.subtract(arms[name][pairs], arms[reference][pairs]))

    return {
        name: {**difference(name, "all"), "small": difference(name, "small")}
        for name in arms
        if name != reference
    }


def verdict(paired: dict[str, dict[str, Any]]) -> str:
    """One sentence: which arms differ from the fixed margin by more than chance allows."""
    found = []
    for pairs in ("all", "small"):
        for name, result in paired.items():
            entry = result if pairs == "all" else result["small"]
            if entry["interval"] is not None and not _holds_zero(entry["interval"]):
                found.append(f"{name} {100 * entry['mean']:+.2f} points ({pairs})")
    if any(result["interval"] is None for result in paired.values()):
        return "one seed says nothing about chance: ask for more with --seeds"
    if not found:
        return f"no arm can be told from {REFERENCE}: every interval of a difference holds 0"
    chance = 2 * len(paired) * (1 - LEVEL)
    return (
        f"told from {REFERENCE}: {'; '.join(found)}; of {2 * len(paired)} intervals about"
        f" {chance:.1f} would miss 0 by chance alone"
    )


def _holds_zero(interval: Sequence[float]) -> bool:
    return interval[0] <= 0.0 <= interval[1]
