"""Intervals of a 1:1 test with millions of pairs, by resampling people.

As in `one_to_one/bootstrap.py`, a different pair of people i and j counts w_i w_j times, a
same pair of i counts w_i times. It is made fast in two steps.

1. The different pairs' scores are cut into bins, the highest 128 alone and each further bin holding
   at most a 128th of the pairs above it: a replicate's ROC is known at false accept rates less than
   1 % apart, and read off at the next lower one.
2. The weight of a bin is a quadratic form of the weights, sum over i of w_i (sum over the bin's
   pairs of i of w_j): the inner sums are one matrix product of a sparse matrix of counts with the
   weights of many replicates.

Shapes: P pairs, I identities, N different pairs, S same pairs, T bins, U points of a curve, R
replicates at a time, E (bin, first identity) combinations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from kappaface_dist.evaluation.one_to_one.bootstrap import Intervals, curve_intervals
from kappaface_dist.evaluation.protocol import Roc
from kappaface_dist.evaluation.resampling import NUM_REPLICATES, drawn_times

BIN_SHARE = 128
REPLICATES_AT_A_TIME = 64
PAIRS_AT_A_TIME = 1 << 17


def bootstrap_subjects(
    cosine_P: np.ndarray,
    same_P: np.ndarray,
    identity_P2: np.ndarray,
    rates: dict[str, float | None],
    *,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> Intervals | None:
    """Intervals for AUC, EER, TAR at FAR and the ROC; the same for the same arguments.

    The 15.7 million pairs of IJB-C take seconds and, however many replicates, some 30 bytes a pair.

    Args:
        identity_P2: the people of each pair, numbered from 0 on.
        rates: tar_at_far of the set; intervals are made for those that are not None.

    Returns:
        None where there is one kind of pairs only.
    """
    if same_P.all() or not same_P.any():
        return None
    num_identities = int(identity_P2.max()) + 1
    different = np.flatnonzero(~same_P)
    different = different[np.argsort(-cosine_P[different], kind="stable")]
    end_T = _bin_ends(cosine_P[different])
    products = _Products(identity_P2[different], end_T, num_identities)
    point_S = _points(cosine_P[same_P], cosine_P[different], end_T)
    identity_S = identity_P2[same_P, 0]

    def curves() -> Iterator[Roc]:
        draws = drawn_times(num_identities, num_replicates, seed)
        while times := list(islice(draws, REPLICATES_AT_A_TIME)):
            false_TR = products.weights(np.stack(times, axis=1))
            for times_I, false_T in zip(times, false_TR.T, strict=True):
                true_U = np.bincount(point_S, times_I[identity_S], minlength=2 * len(end_T) + 1)
                # So few people that only one kind was drawn: there is no curve.
                if false_T.any() and true_U.any():
                    yield _curve(false_T, true_U)

    return curve_intervals(curves(), rates, len(different), num_identities)


def _bin_ends(sorted_N: np.ndarray) -> np.ndarray:
    """One past the last pair of each bin; equal scores are in one bin."""
    ends, end = [], 0
    descending_N = -sorted_N
    while end < len(sorted_N):
        last = min(end + max(1, end // BIN_SHARE), len(sorted_N)) - 1
        end = int(np.searchsorted(descending_N, descending_N[last], side="right"))
        ends.append(end)
    return np.array(ends)


def _points(same_S: np.ndarray, different_N: np.ndarray, end_T: np.ndarray) -> np.ndarray:
    """The first point of a curve at which each same pair is accepted.

    A bin has two: before it, where all that is above its highest score is accepted, and after it,
    where all that reaches its lowest is. The last point of a curve accepts everything.
    """
    highest_T, lowest_T = different_N[np.append(0, end_T[:-1])], different_N[end_T - 1]
    bin_S = np.searchsorted(-lowest_T, -same_S, side="left")
    above_S = same_S > np.append(highest_T, np.inf)[bin_S]
    reaches_S = (bin_S < len(end_T)) & ~above_S
    return 2 * bin_S + reaches_S


def _curve(false_T: np.ndarray, true_U: np.ndarray) -> Roc:
    """The ROC of one replicate, from none to all, by the points of _points()."""
    share_T = np.concatenate([[0.0], np.cumsum(false_T) / false_T.sum()])
    far_U = np.concatenate([[0.0], np.repeat(share_T, 2)[1:-1], [1.0]])
    tar_U = np.concatenate([[0.0], np.cumsum(true_U) / true_U.sum()])
    return Roc(far_U, tar_U, np.full(len(far_U), np.nan))


@dataclass(frozen=True)
class _Entries:
    """Some bins: for each (bin, first identity) its second identities, one after the other."""

    bins: slice
    second_N: torch.Tensor
    start_E: torch.Tensor
    first_E: torch.Tensor
    start_T: torch.Tensor


class _Products:
    """The different pairs in the order in which their weights are summed up."""

    def __init__(self, identity_N2: np.ndarray, end_T: np.ndarray, num_identities: int) -> None:
        self.num_bins = len(end_T)
        self.parts = []
        begin = 0
        while begin < len(end_T):
            first = end_T[begin - 1] if begin else 0
            fits = np.searchsorted(end_T, first + PAIRS_AT_A_TIME, side="right")
            end = max(int(fits), begin + 1)
            pairs = identity_N2[first : end_T[end - 1]]
            size_T = np.diff(end_T[begin:end], prepend=first)
            self.parts.append(_entries(slice(begin, end), pairs, size_T, num_identities))
            begin = end

    def weights(self, times_IR: np.ndarray) -> np.ndarray:
        """The weight of each bin in each replicate, float64 [T, R]."""
        times = torch.from_numpy(times_IR.astype(np.float32))
        total_TR = np.empty((self.num_bins, times_IR.shape[1]))
        for part in self.parts:
            inner = embedding_bag(part.second_N, times, part.start_E, mode="sum")
            inner *= times[part.first_E]
            numbers = torch.arange(len(inner), dtype=torch.int32)
            total_TR[part.bins] = embedding_bag(numbers, inner, part.start_T, mode="sum").numpy()
        return total_TR


def _entries(
    bins: slice, identity_N2: np.ndarray, size_T: np.ndarray, num_identities: int
) -> _Entries:
    bin_N = np.repeat(np.arange(len(size_T)), size_T)
    key_N = bin_N * num_identities + identity_N2[:, 0]
    order_N = np.argsort(key_N, kind="stable")
    key_N = key_N[order_N]
    start_E = np.flatnonzero(np.diff(key_N, prepend=-1))
    bin_E, first_E = np.divmod(key_N[start_E], num_identities)
    start_T = np.searchsorted(bin_E, np.arange(len(size_T)))
    return _Entries(bins, *map(_indices, (identity_N2[order_N, 1], start_E, first_E, start_T)))


def _indices(numbers: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(numbers.astype(np.int32))
