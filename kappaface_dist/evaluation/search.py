"""Identification: each query against a gallery, over the score matrix in blocks that fit a cache.

Scores are cosines of unit embeddings. Nothing but one block of them is ever held.
Shapes: Q queries, N gallery entries, D embedding size, M other entries of a query's person, E
(query, mate) combinations.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

QUERY_ROWS = 1024
GALLERY_ROWS = 4096
# Combinations of queries and mates handled at a time; a block of queries is cut to stay below.
MAX_MATES = 1 << 20


@dataclass(frozen=True)
class Search:
    """What every identification protocol needs to know of each query.

    Attributes:
        mate_Q: score of the best entry of the query's own subject; -inf where it has none.
        rank_Q: 1 + the number of other subjects' entries with at least that score; 0 where the
            query has no mate. A tie counts against the model (scores that differ by less than
            float32's rounding may come out either way).
        other_Q: score of the best entry of another subject; -inf where there is none.
    """

    mate_Q: np.ndarray
    rank_Q: np.ndarray
    other_Q: np.ndarray

    @property
    def mated_Q(self) -> np.ndarray:
        """Whether the query's subject is in the gallery."""
        return self.rank_Q > 0


def search(
    query_QD: np.ndarray,
    query_subject_Q: np.ndarray,
    gallery_ND: np.ndarray,
    gallery_subject_N: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    query_rows: int = QUERY_ROWS,
    gallery_rows: int = GALLERY_ROWS,
) -> Search:
    """Search every query in the gallery.

    Args:
        query_QD, gallery_ND: unit embeddings, float32; may be memory maps.
        query_subject_Q, gallery_subject_N: whole numbers; distractors have a number of their own.
        query_rows, gallery_rows: largest size of a block of scores.
    """
    num_queries = len(query_QD)
    mate_Q = np.full(num_queries, -np.inf, dtype=np.float32)
    other_Q = np.full(num_queries, -np.inf, dtype=np.float32)
    rank_Q = np.zeros(num_queries, dtype=np.int64)
    order_N = np.argsort(gallery_subject_N, kind="stable")
    sorted_N = gallery_subject_N[order_N]
    first_Q = np.searchsorted(sorted_N, query_subject_Q, side="left")
    num_mates_Q = np.searchsorted(sorted_N, query_subject_Q, side="right") - first_Q
    for start, stop in _blocks(num_mates_Q, query_rows):
        block = slice(start, stop)
        query = _tensor(query_QD, block, device)
        query_E = np.repeat(np.arange(stop - start), num_mates_Q[block])
        mate_E = order_N[_ranges(first_Q[block], num_mates_Q[block])]
        by_entry = np.argsort(mate_E, kind="stable")
        query_E, mate_E = query_E[by_entry], mate_E[by_entry]
        mate = _best_mates(query, query_E, gallery_ND, mate_E, device)
        # A query without a mate has no rank: nothing is counted for it.
        bar = torch.where(mate > -torch.inf, mate, torch.inf)
        count = torch.zeros(stop - start, dtype=torch.int64, device=query.device)
        other = torch.full((stop - start,), -torch.inf, device=query.device)
        for begin in range(0, len(gallery_ND), gallery_rows):
            end = min(begin + gallery_rows, len(gallery_ND))
            score = query @ _tensor(gallery_ND, slice(begin, end), device).T
            low, high = np.searchsorted(mate_E, (begin, end))
            if high > low:
                rows = torch.from_numpy(query_E[low:high]).to(score.device)
                score[
                    rows, torch.from_numpy(mate_E[low:high] - begin).to(score.device)
                ] = -torch.inf
            largest = score.amax(dim=1)
            other = torch.maximum(other, largest)
            # Few mates are beaten by anything in a block: the others need no second look at it.
            beaten = torch.nonzero(largest >= bar)[:, 0]
            count[beaten] += (score[beaten] >= bar[beaten, None]).sum(dim=1)
        mate_Q[block], other_Q[block] = mate.cpu().numpy(), other.cpu().numpy()
        rank_Q[block] = np.where(num_mates_Q[block] > 0, count.cpu().numpy() + 1, 0)
    return Search(mate_Q, rank_Q, other_Q)


def distractor_ranks(
    probe_QD: np.ndarray,
    subject_Q: np.ndarray,
    distractor_ND: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    query_rows: int = QUERY_ROWS,
    gallery_rows: int = GALLERY_ROWS,
) -> np.ndarray:
    """MegaFace's protocol: each probe looks for each other image of its person among distractors.

    Kemelmacher-Shlizerman et al., "The MegaFace Benchmark" (2016), section 4: the gallery is all
    distractors and one image of the probe's person, for every such image in turn.

    Returns:
        rank_E: for every ordered pair of two images of one person, in the order of probes, 1 + the
        number of distractors with at least the score of the pair.
    """
    order_Q = np.argsort(subject_Q, kind="stable")
    sorted_Q = subject_Q[order_Q]
    first_Q = np.searchsorted(sorted_Q, subject_Q, side="left")
    num_Q = np.searchsorted(sorted_Q, subject_Q, side="right") - first_Q
    ranks = []
    for start, stop in _blocks(num_Q, query_rows):
        block = slice(start, stop)
        query_E = np.repeat(np.arange(start, stop), num_Q[block])
        mate_E = order_Q[_ranges(first_Q[block], num_Q[block])]
        query_E, mate_E = query_E[query_E != mate_E], mate_E[query_E != mate_E]
        query = _tensor(probe_QD, block, device)
        score_E = _pair_scores(query, query_E - start, probe_QD, mate_E, device)
        # Thresholds of each probe in ascending order, filled up with infinity.
        place_E = np.arange(len(query_E)) - np.searchsorted(query_E, query_E)
        width = int(place_E.max()) + 1 if len(place_E) else 0
        if not width:
            continue
        at = torch.from_numpy(query_E - start).to(query.device), torch.from_numpy(place_E)
        at = at[0], at[1].to(query.device)
        threshold_QM = torch.full((stop - start, width), torch.inf, device=query.device)
        threshold_QM[at] = score_E
        sorted_QM, position_QM = threshold_QM.sort(dim=1)
        bins_QM = torch.zeros(stop - start, width + 1, dtype=torch.int64, device=query.device)
        for begin in range(0, len(distractor_ND), gallery_rows):
            part = slice(begin, min(begin + gallery_rows, len(distractor_ND)))
            score = query @ _tensor(distractor_ND, part, device).T
            passed = torch.searchsorted(sorted_QM, score, right=True)
            bins_QM.scatter_add_(1, passed, torch.ones_like(passed))
        # A distractor that passes i thresholds passes the lowest i.
        above_QM = bins_QM.flip(1).cumsum(1).flip(1)[:, 1:]
        count_QM = torch.empty_like(above_QM).scatter_(1, position_QM, above_QM)
        ranks.append(1 + count_QM[at].cpu().numpy())
    return np.concatenate(ranks) if ranks else np.zeros(0, dtype=np.int64)


def _blocks(num_mates_Q: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Consecutive queries: at most so many, with at most MAX_MATES mates (or a single query)."""
    start, total = 0, np.cumsum(num_mates_Q)
    while start < len(total):
        before = total[start - 1] if start else 0
        fits = int(np.searchsorted(total, before + MAX_MATES, side="right"))
        stop = min(start + most, max(fits, start + 1), len(total))
        yield start, stop
        start = stop


def _ranges(first_Q: np.ndarray, num_Q: np.ndarray) -> np.ndarray:
    """first, first + 1, ... for each query, one after the other."""
    offset = np.repeat(first_Q - np.concatenate([[0], np.cumsum(num_Q)[:-1]]), num_Q)
    return np.arange(num_Q.sum()) + offset


def _best_mates(
    query: torch.Tensor,
    query_E: np.ndarray,
    gallery_ND: np.ndarray,
    mate_E: np.ndarray,
    device: torch.device | str,
) -> torch.Tensor:
    best = torch.full((len(query),), -torch.inf, device=query.device)
    score_E = _pair_scores(query, query_E, gallery_ND, mate_E, device)
    return best.scatter_reduce_(0, torch.from_numpy(query_E).to(query.device), score_E, "amax")


def _pair_scores(
    query: torch.Tensor,
    query_E: np.ndarray,
    gallery_ND: np.ndarray,
    mate_E: np.ndarray,
    device: torch.device | str,
) -> torch.Tensor:
    scores = [query.new_empty(0)]
    for begin in range(0, len(mate_E), GALLERY_ROWS):
        part = slice(begin, begin + GALLERY_ROWS)
        rows = query[torch.from_numpy(query_E[part]).to(query.device)]
        scores.append((rows * _tensor(gallery_ND, mate_E[part], device)).sum(dim=1))
    return torch.cat(scores)


def _tensor(
    rows_XD: np.ndarray, part: slice | np.ndarray, device: torch.device | str
) -> torch.Tensor:
    """Rows as float32 on the device, without a copy where they are that already."""
    chosen = np.ascontiguousarray(rows_XD[part], dtype=np.float32)
    if not chosen.flags.writeable:
        chosen = chosen.copy()  # a read-only memory map: torch shares writable memory only
    return torch.from_numpy(chosen).to(device)
