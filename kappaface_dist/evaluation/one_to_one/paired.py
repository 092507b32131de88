"""Two models on the same pairs: the differences of their numbers, with intervals over people.

Both are given the same resampled people: what is hard for both does not blur the difference.
Shapes: P pairs.
"""

from dataclasses import dataclass

import numpy as np

from kappaface_dist.evaluation.folds import order_for_folds
from kappaface_dist.evaluation.one_to_one.bootstrap import pair_weights
from kappaface_dist.evaluation.one_to_one.pairs import PairResult
from kappaface_dist.evaluation.protocol import (
    area_under,
    fold_accuracies,
    loosest_thresholds,
    roc,
)
from kappaface_dist.evaluation.resampling import NUM_REPLICATES, drawn_times, percentiles


@dataclass(frozen=True)
class Difference:
    """One number of two models: the second's minus the first's, and its interval at 95 %.

    interval is None where none could be made.
    """

    first: float
    second: float
    interval: tuple[float, float] | None

    @property
    def difference(self) -> float:
        """Below 0 where the second is worse."""
        return self.second - self.first


def paired_differences(
    first: PairResult,
    second: PairResult,
    same_P: np.ndarray,
    identity_P2: np.ndarray,
    *,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Accuracy, AUC and the true accept rates that the set has pairs for ("TAR@1e-2").

    Args:
        identity_P2: the person of each image, numbered from 0 on.
        num_replicates: of the bootstrap over people; 0 for no intervals.
    """
    numbers = [_numbers(result) for result in (first, second)]
    names = [name for name in numbers[0] if None not in (numbers[0][name], numbers[1][name])]
    replicates = []
    for times_I in drawn_times(int(identity_P2.max()) + 1, num_replicates, seed):
        weight_P = pair_weights(times_I, identity_P2)
        if not weight_P[same_P].any() or not weight_P[~same_P].any():
            continue  # so few people that only one kind was drawn
        drawn = [
            _weighted(result.distance_P, same_P, weight_P, names) for result in (first, second)
        ]
        replicates.append(drawn[1] - drawn[0])
    bounds: list[tuple[float, float] | None] = [None] * len(names)
    if replicates and names:
        low, high = percentiles(np.array(replicates))
        bounds = list(zip(low.tolist(), high.tolist(), strict=True))
    return {
        name: Difference(float(numbers[0][name]), float(numbers[1][name]), interval)  # type: ignore[arg-type]
        for name, interval in zip(names, bounds, strict=True)
    }


def _numbers(result: PairResult) -> dict[str, float | None]:
    rates = {f"TAR@{rate}": tar for rate, tar in result.tar_at_far.items()}
    return {"accuracy": result.accuracy, "AUC": result.auc, **rates}


def _weighted(
    distance_P: np.ndarray, same_P: np.ndarray, weight_P: np.ndarray, names: list[str]
) -> np.ndarray:
    """The numbers of one replicate, in the order of the names."""
    curve = roc(distance_P, same_P, weight_P)
    found = {"AUC": area_under(curve)}
    if "accuracy" in names:
        order_P, _ = order_for_folds(same_P)
        folds = fold_accuracies(distance_P[order_P], same_P[order_P], weight_P=weight_P[order_P])
        found["accuracy"] = float(np.nanmean(folds))
    rates = [name for name in names if name.startswith("TAR@")]
    far_X = np.array([float(name.removeprefix("TAR@")) for name in rates])
    found |= dict(zip(rates, curve.tar_T[loosest_thresholds(curve, far_X)].tolist(), strict=True))
    return np.array([found[name] for name in names])
