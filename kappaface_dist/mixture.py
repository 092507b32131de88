"""Are these numbers of one kind or of two? Two normal distributions on a line, by EM.

Both have one standard deviation: with one each, what is wide swallows the tail of what is narrow,
and a kind of one number would be infinitely likely.
Shapes: X numbers.
"""

from dataclasses import dataclass

import numpy as np

NUM_STEPS = 500
TOLERANCE = 1e-7
# Where EM starts from: so large a share of the numbers is of the low kind.
START_SHARES = (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99)
# Distance of the means in standard deviations: two modes are more than 2 apart (Ashman, Bird and
# Zepf, AJ 108, 1994), and the halves of a uniform distribution, which has none, √12.
SEPARATION = 4.0
SMALLEST = 10  # fewer numbers say nothing of kinds
LARGEST = 20_000  # more are thinned out evenly: their quantiles say as much


@dataclass(frozen=True)
class Mixture:
    """Of two kinds, the low one first: shares and means [2], and the standard deviation of both."""

    share: np.ndarray
    mean: np.ndarray
    std: float

    def low_probability(self, score_X: np.ndarray) -> np.ndarray:
        """That each number is of the low kind; it never rises with the number."""
        low, high = self.mean
        # Of two densities of one width the log of the ratio is a line, endless numbers included.
        log_odds_X = (high - low) / self.std**2 * (score_X - (low + high) / 2)
        log_odds_X += np.log(self.share[1] / self.share[0])
        return 1.0 / (1.0 + np.exp(np.clip(log_odds_X, -700.0, 700.0)))


def fit_mixture(score_X: np.ndarray) -> Mixture | None:
    """The likeliest two kinds that are apart; None where there are none, or one explains as much.

    Apart: their means are 4 standard deviations from each other, or more. As much: by the Bayesian
    information criterion (4 numbers against 2).
    """
    score_X = np.sort(score_X[np.isfinite(score_X)].astype(np.float64))
    score_X = score_X[:: -(-len(score_X) // LARGEST) or 1]
    spread = float(score_X.std()) if len(score_X) else 0.0
    if len(score_X) < SMALLEST or spread == 0.0:
        return None
    fits = [_climb(score_X, spread, share) for share in START_SHARES]
    apart = [fit for fit in fits if np.diff(fit[1].mean)[0] >= SEPARATION * fit[1].std]
    if not apart:
        return None
    likelihood, best = max(apart, key=lambda fit: fit[0])
    alone = _log_densities(score_X, np.ones(1), score_X.mean(keepdims=True), spread).sum()
    return best if 2.0 * (likelihood - alone) > 2.0 * np.log(len(score_X)) else None


def _climb(score_X: np.ndarray, spread: float, low_share: float) -> tuple[float, Mixture]:
    """(log likelihood, kinds) where EM ends, from a cut through the sorted numbers."""
    cut = min(max(int(low_share * len(score_X)), 1), len(score_X) - 1)
    low_X = (np.arange(len(score_X)) < cut).astype(np.float64)
    before = -np.inf
    for _ in range(NUM_STEPS):
        weight_2X = np.stack([low_X, 1.0 - low_X])
        total_2 = np.maximum(weight_2X.sum(axis=1), 1e-12)
        mean_2 = (weight_2X @ score_X) / total_2
        variance = (weight_2X * np.square(score_X - mean_2[:, None])).sum() / len(score_X)
        std = max(float(np.sqrt(variance)), 1e-6 * spread)
        share_2 = total_2 / total_2.sum()
        log_2X = _log_densities(score_X, share_2, mean_2, std)
        sum_X = np.logaddexp(log_2X[0], log_2X[1])
        low_X = np.exp(log_2X[0] - sum_X)
        likelihood = float(sum_X.sum())
        if likelihood - before < TOLERANCE * len(score_X):
            break
        before = likelihood
    order = np.argsort(mean_2)
    return likelihood, Mixture(share_2[order], mean_2[order], std)


def _log_densities(
    score_X: np.ndarray, share: np.ndarray, mean: np.ndarray, std: float
) -> np.ndarray:
    """Logarithm of share times density, a row for each kind."""
    square_2X = np.square((score_X - mean[:, None]) / std)
    return np.log(share / (std * np.sqrt(2 * np.pi)))[:, None] - 0.5 * square_2X
