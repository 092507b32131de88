"""The ten folds of 1:1 verification: which pairs lie in which, and in which order they can lie.

A fold is a block of consecutive pairs. A fold of one kind of pairs measures only half of what an
accuracy is, at a threshold that the other kind had most to say about: it is never averaged.
Shapes: P pairs, F folds.
"""

import numpy as np

NUM_FOLDS = 10


def fold_numbers(num_pairs: int, num_folds: int = NUM_FOLDS) -> np.ndarray:
    """fold_P: the first P mod F folds are one pair longer than the others."""
    size_F = np.full(num_folds, num_pairs // num_folds)
    size_F[: num_pairs % num_folds] += 1
    return np.repeat(np.arange(num_folds), size_F)


def folds_of_one_kind(same_P: np.ndarray, num_folds: int = NUM_FOLDS) -> int:
    """How many folds hold same pairs only, different ones only, or none."""
    fold_P = fold_numbers(len(same_P), num_folds)
    num_same_F = np.bincount(fold_P[same_P], minlength=num_folds)
    num_different_F = np.bincount(fold_P[~same_P], minlength=num_folds)
    return int(((num_same_F == 0) | (num_different_F == 0)).sum())


def spread_evenly(same_P: np.ndarray) -> np.ndarray:
    """order_P: each kind in its own order, spread over the whole; of equal numbers, in turns.

    With ten pairs or more of each kind, every fold of the reordered pairs holds both.
    """
    same, different = np.flatnonzero(same_P), np.flatnonzero(~same_P)
    order = _merged(same, different)
    if folds_of_one_kind(same_P[order]) == 0 or min(len(same), len(different)) < NUM_FOLDS:
        return order
    # A fold would miss one by rounding: each gets one of both, and of the rest its share.
    few, many = sorted((same, different), key=len)
    end_F = np.cumsum(np.bincount(fold_numbers(len(same_P))))
    both_F = np.arange(1, NUM_FOLDS + 1)
    rest_F = end_F - 2 * both_F
    few_end_F = both_F + (len(few) - NUM_FOLDS) * rest_F // max(1, int(rest_F[-1]))
    parts = zip(
        np.split(few, few_end_F[:-1]), np.split(many, (end_F - few_end_F)[:-1]), strict=True
    )
    return np.concatenate([_merged(*part) for part in parts])


def _merged(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    place = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in (first, second)])
    return np.concatenate([first, second])[np.argsort(place, kind="stable")]


def order_for_folds(same_P: np.ndarray) -> tuple[np.ndarray | None, str]:
    """The order in which pairs of both kinds fill the folds, and a note where it is not theirs.

    Returns:
        order_P, and why it is not the order in which the pairs lie; None and the reason where
        there are too few pairs for ten folds with both kinds in each.
    """
    num_same, num_pairs = int(same_P.sum()), len(same_P)
    if num_pairs < NUM_FOLDS:
        return None, f"{num_pairs} pairs are not enough for an accuracy over {NUM_FOLDS} folds"
    if min(num_same, num_pairs - num_same) < NUM_FOLDS:
        return None, (
            f"{num_same} same and {num_pairs - num_same} different pairs are not enough for an"
            f" accuracy over {NUM_FOLDS} folds, each of which needs both kinds"
        )
    found = folds_of_one_kind(same_P)
    if not found:
        return np.arange(num_pairs), ""
    return spread_evenly(same_P), (
        f"as the pairs lie, {found} of {NUM_FOLDS} folds hold one kind only; for the accuracy each"
        " kind was spread evenly over the folds"
    )
