"""Which reading of few photos says most of how hard a class is: each against its other photos.

Shapes: P people that are read, D embedding size, n photos of a person, I images in all.
"""

from typing import Any

import numpy as np
import torch

from kappaface_dist.head import KappaFace
from kappaface_dist.head.margins.psi import psi
from kappaface_dist.head.margins.resultant import (
    concentration,
    empirical_bayes,
    squared_resultant,
    towards_mean,
)
from kappaface_dist.margin_study.margin_report import average_ranks, correlation, spearman
from kappaface_dist.margin_study.reliability import Embedded

# Photos that are read; as many as small classes have ("tail") are drawn from the run's own.
SIZES = (2, 3, 5, 10)
TAIL = (2, 10)
OTHERS = 10  # photos of the same person, at least, that tell how hard he is
FEWEST_PEOPLE = 20
DRAWS = 200
LEVEL = 0.95
PLAIN = "unbiased"  # what the others are compared to
# Of the margins themselves: from which estimate, standardised in which way.
MARGINS = {
    f"margin, {estimate}, {way}": (estimate, KappaFace(standardise=way, concentration_share=1.0))
    for estimate in (PLAIN, "empirical_bayes")
    for way in ("measured", "robust", "logarithmic")
}
PLAIN_MARGIN = next(iter(MARGINS))
# Weights that are fitted to people who are not in the draw: which readings take part.
TOGETHER = {
    "with target cosine": ("empirical_bayes", "target_cosine"),
    "with length": ("empirical_bayes", "length"),
    "with both": ("empirical_bayes", "target_cosine", "length"),
}


def compare_estimates(embedded: Embedded, count_C: np.ndarray) -> list[dict[str, Any]]:
    """How each reading of n photos of a person ranks people as their other photos do.

    The truth is the unbiased ρ² of the other photos, OTHERS at least. Each draw takes people anew,
    with replacement, and photos of theirs; its intervals are therefore about people, too.

    Args:
        count_C: images of the run's classes, whose small ones are the sizes of the tail.

    Returns:
        for each of SIZES, and for a mixture as the run's small classes have it: photos, people;
        correlation, name -> mean over draws, of ranks (readings) or Pearson's (MARGINS: the share
        of their spread that is no chance); difference, name -> [low, high], 95 % of the draws'
        differences to PLAIN or PLAIN_MARGIN. Empty where fewer than FEWEST_PEOPLE have enough.
    """
    rng = np.random.default_rng(0)
    tail = count_C[(count_C >= TAIL[0]) & (count_C <= TAIL[1])]
    sizes: list[tuple[str, np.ndarray]] = [(str(size), np.array([size])) for size in SIZES]
    if len(np.unique(tail)) > 1:
        sizes.append((f"{TAIL[0]} to {TAIL[1]}", tail))
    labels, index_I = np.unique(embedded.label_I, return_inverse=True)
    people = [np.flatnonzero(index_I == c) for c in range(len(labels))]
    rows = []
    for photos, choice in sizes:
        enough = [index for index in people if len(index) >= choice.max() + OTHERS]
        if len(enough) < FEWEST_PEOPLE:
            continue
        found = [_draw(embedded, enough, choice, rng) for _ in range(DRAWS)]
        value = {name: np.array([draw[name] for draw in found]) for name in found[0]}
        ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        rows.append(
            {
                "photos": photos,
                "people": len(enough),
                "correlation": {name: float(each.mean()) for name, each in value.items()},
                "difference": {
                    name: np.quantile(
                        each - value[PLAIN_MARGIN if name in MARGINS else PLAIN], ends
                    ).tolist()
                    for name, each in value.items()
                    if name not in (PLAIN, PLAIN_MARGIN)
                },
            }
        )
    return rows


def _draw(
    embedded: Embedded, people: list[np.ndarray], sizes: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Correlations with the truth of one draw of people and photos, by name of the reading."""
    chosen = rng.integers(0, len(people), len(people))
    others = np.setdiff1d(np.arange(len(people)), chosen)
    parts = []
    for numbers in (chosen, others):
        size_P = rng.choice(sizes, len(numbers))
        shuffled = [rng.permutation(people[number]) for number in numbers]
        few = [index[:n] for index, n in zip(shuffled, size_P, strict=True)]
        rest = [index[n:] for index, n in zip(shuffled, size_P, strict=True)]
        truth_P = readings(embedded, rest)[PLAIN]
        parts.append((readings(embedded, few), truth_P))
    (seen, truth_P), (fitted, fitted_truth_P) = parts
    for name, names in TOGETHER.items():
        if all(each in seen for each in names):
            weights = _fit([fitted[each] for each in names], fitted_truth_P)
            seen[name] = weights @ [average_ranks(seen[each]) for each in names]
    found = {name: spearman(value_P, truth_P) or 0.0 for name, value_P in seen.items()}
    embedding_size = embedded.embedding_ID.shape[1]
    for name, (estimate, margin) in MARGINS.items():
        first, second = (margins_from(x, margin, embedding_size) for x in (seen[estimate], truth_P))
        found[name] = correlation(first, second) or 0.0
    return found


def readings(embedded: Embedded, photos: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What these photos of each person say: ρ² by each estimator, and what else is measured.

    Args:
        photos: indices [n] of each person's.

    Returns:
        name -> [P]; the larger, the easier. target_cosine is there where the centres are known.
    """
    size_P = torch.tensor([len(index) for index in photos], dtype=torch.float64)
    sum_PD = np.stack([embedded.embedding_ID[index].sum(axis=0) for index in photos])
    pair_sum_P = torch.from_numpy(np.square(sum_PD).sum(axis=1)).double() - size_P
    weights = (pair_sum_P, size_P.square() - size_P, size_P)
    squared_P = squared_resultant(*weights, "unbiased").clamp(0.0, 1.0)
    sound_P = torch.ones(len(photos), dtype=torch.bool)
    found = {
        PLAIN: squared_P,
        "plugin": squared_resultant(*weights, "plugin"),
        "shrinkage 2": towards_mean(squared_P, size_P, sound_P, 2.0),
        "shrinkage 5": towards_mean(squared_P, size_P, sound_P, 5.0),
        "empirical_bayes": empirical_bayes(squared_P, size_P, sound_P, sum_PD.shape[1]),
    }
    result = {name: value_P.numpy() for name, value_P in found.items()}
    measured = {"target_cosine": embedded.target_cosine_I, "length": embedded.length_I}
    for name, value_I in measured.items():
        if value_I is not None:
            result[name] = np.array([value_I[index].mean() for index in photos])
    return result


def margins_from(squared_P: np.ndarray, margin: KappaFace, embedding_size: int) -> np.ndarray:
    """w^κ from ρ², standardised over these people."""
    root_P = torch.from_numpy(squared_P.clip(0.0, margin.max_resultant**2)).sqrt()
    kappa_P = concentration(root_P, embedding_size)
    return psi(kappa_P, torch.ones_like(kappa_P), margin, embedding_size).numpy()


def _fit(values: list[np.ndarray], truth_P: np.ndarray) -> np.ndarray:
    """Least-squares weights of the readings' ranks for the truth's."""
    columns = np.stack([average_ranks(value_P) for value_P in values], axis=1)
    centred = columns - columns.mean(axis=0)
    rank_P = average_ranks(truth_P)
    return np.linalg.lstsq(centred, rank_P - rank_P.mean(), rcond=None)[0]
