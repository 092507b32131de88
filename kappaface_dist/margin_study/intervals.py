"""Means over seeds with their intervals, and differences seed by seed."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kappaface_dist.margin_study.arms import REFERENCE

LEVEL = 0.95
POWER = 0.8
# Accuracy on all pairs, on those near small classes, area under the ROC curve on all.
MEASURES = ("all", "small", "auc")


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
    half = t_quantile((1 + LEVEL) / 2, len(values_S) - 1) * _standard_error(values_S)
    return {"mean": mean, "interval": [mean - half, mean + half]}


def _standard_error(values_S: np.ndarray) -> float:
    return float(values_S.std(ddof=1)) / math.sqrt(len(values_S))


def difference_interval(values: Sequence[float] | np.ndarray, comparisons: int) -> dict[str, Any]:
    """`mean_interval`, and what holds for so many comparisons together (Bonferroni).

    Returns:
        besides: corrected, the interval that all comparisons miss together in 5 % of all cases at
        most; detectable, the smallest true difference that such an interval would have told from 0
        in 80 % of all cases, (t_{1 − 0.05 / 2k} + t_{0.8}) s / √n. None from a single value.
    """
    found = mean_interval(values)
    if found["interval"] is None:
        return found | {"corrected": None, "detectable": None}
    values_S = np.asarray(values, dtype=np.float64)
    degrees, error = len(values_S) - 1, _standard_error(values_S)
    quantile = t_quantile(1 - (1 - LEVEL) / 2 / comparisons, degrees)
    mean, half = found["mean"], quantile * error
    detectable = half + t_quantile(POWER, degrees) * error
    return found | {"corrected": [mean - half, mean + half], "detectable": detectable}


def plus_minus(interval: Sequence[float] | None) -> str:
    """Half of an interval in points, as " ± 0.50"; nothing where there is none."""
    return "" if interval is None else f" ± {100 * ((interval[1] - interval[0]) / 2):.2f}"


def compare(
    arms: dict[str, dict[str, list[float]]], reference: str = REFERENCE
) -> dict[str, dict[str, Any]]:
    """Differences to one arm, paired by seed, of all the others.

    Args:
        arms: name -> `all` and others, such as `small` and `auc`: numbers by seed.
        reference: the arm that is subtracted.

    Returns:
        name -> a `difference_interval` for `all`, and the others with their own in it.
    """

    def difference(name: str, key: str) -> dict[str, Any]:
        values = np.subtract(arms[name][key], arms[reference][key])
        return difference_interval(values, max(len(arms) - 1, 1))

    return {
        name: {
            **difference(name, "all"),
            **{key: difference(name, key) for key in arms[name] if key != "all"},
        }
        for name in arms
        if name != reference
    }


def verdict(paired: dict[str, dict[str, Any]], reference: str = REFERENCE) -> str:
    """Which arms differ from the reference by more than chance allows, one by one and together."""
    if not paired:
        return f"there is no arm but {reference}"
    if any(result["interval"] is None for result in paired.values()):
        return "one seed says nothing about chance: ask for more with --seeds"
    entries = [
        (f"{name} {100 * entry['mean']:+.2f} points ({key})", entry)
        for key in MEASURES
        for name, result in paired.items()
        if (entry := result if key == "all" else result.get(key)) is not None
    ]
    found = [text for text, entry in entries if not _holds_zero(entry["interval"])]
    if not found:
        return f"no arm can be told from {reference}: every interval of a difference holds 0"
    sure = [text for text, entry in entries if not _holds_zero(entry["corrected"])]
    return (
        f"told from {reference}: {'; '.join(found)}; of {len(entries)} intervals about"
        f" {len(entries) * (1 - LEVEL):.1f} would miss 0 by chance alone; corrected for"
        f" {len(paired)} arm(s): {'; '.join(sure) or 'none'}"
    )


def _holds_zero(interval: Sequence[float]) -> bool:
    return interval[0] <= 0.0 <= interval[1]
