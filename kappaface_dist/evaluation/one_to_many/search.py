"""Identification: each query against a gallery, over the score matrix in blocks that fit a cache.

Scores are cosines of unit embeddings. Nothing but one block of them is ever held.
Shapes: Q queries, N gallery entries, D embedding size, E (query, mate) combinations.
"""

from dataclasses import dataclass

import numpy as np
import torch

from kappaface_dist.evaluation.one_to_many.score_blocks import (
    GALLERY_ROWS,
    QUERY_ROWS,
    no_entries,
    pair_scores,
    query_blocks,
    ranges,
    rows_on,
    take_larger,
)


@dataclass(frozen=True)
class Search:
    """What every identification protocol needs to know of each query.

    Attributes:
        mate_Q: score of the best entry of the query's own subject; -inf where it has none.
        rank_Q: 1 + the number of other subjects' entries with at least that score; 0 where the
            query has no mate. A tie counts against the model (scores that differ by less than
            float32's rounding may come out either way).
        other_Q: score of the best entry of another subject; -inf where there is none.
        mate_at_Q, other_at_Q: the numbers of those entries in the gallery, of equal ones the first;
            -1 where there is none.
    """

    mate_Q: np.ndarray
    rank_Q: np.ndarray
    other_Q: np.ndarray
    mate_at_Q: np.ndarray
    other_at_Q: np.ndarray

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
    mate_at_Q = np.full(num_queries, -1)
    other_at_Q = np.full(num_queries, -1)
    order_N = np.argsort(gallery_subject_N, kind="stable")
    sorted_N = gallery_subject_N[order_N]
    first_Q = np.searchsorted(sorted_N, query_subject_Q, side="left")
    num_mates_Q = np.searchsorted(sorted_N, query_subject_Q, side="right") - first_Q
    for start, stop in query_blocks(num_mates_Q, query_rows):
        block = slice(start, stop)
        query = rows_on(query_QD, block, device)
        query_E = np.repeat(np.arange(stop - start), num_mates_Q[block])
        mate_E = order_N[ranges(first_Q[block], num_mates_Q[block])]
        by_entry = np.argsort(mate_E, kind="stable")
        query_E, mate_E = query_E[by_entry], mate_E[by_entry]
        mate, mate_at_Q[block] = _best_mates(query, query_E, gallery_ND, mate_E, device)
        # A query without a mate has no rank: nothing is counted for it.
        bar = torch.where(mate > -torch.inf, mate, torch.inf)
        count = torch.zeros(stop - start, dtype=torch.int64, device=query.device)
        other, other_at = no_entries(query)
        for begin in range(0, len(gallery_ND), gallery_rows):
            end = min(begin + gallery_rows, len(gallery_ND))
            score = query @ rows_on(gallery_ND, slice(begin, end), device).T
            low, high = np.searchsorted(mate_E, (begin, end))
            if high > low:
                rows = torch.from_numpy(query_E[low:high]).to(score.device)
                score[
                    rows, torch.from_numpy(mate_E[low:high] - begin).to(score.device)
                ] = -torch.inf
            largest = take_larger(score, begin, other, other_at)
            # Few mates are beaten by anything in a block: the others need no second look at it.
            beaten = torch.nonzero(largest >= bar)[:, 0]
            count[beaten] += (score[beaten] >= bar[beaten, None]).sum(dim=1)
        mate_Q[block], other_Q[block] = mate.cpu().numpy(), other.cpu().numpy()
        other_at_Q[block] = other_at.cpu().numpy()
        rank_Q[block] = np.where(num_mates_Q[block] > 0, count.cpu().numpy() + 1, 0)
    return Search(mate_Q, rank_Q, other_Q, mate_at_Q, other_at_Q)


def _best_mates(
    query: torch.Tensor,
    query_E: np.ndarray,
    gallery_ND: np.ndarray,
    mate_E: np.ndarray,
    device: torch.device | str,
) -> tuple[torch.Tensor, np.ndarray]:
    """Score and number of each query's best mate; mate_E ascends."""
    best = torch.full((len(query),), -torch.inf, device=query.device)
    score_E = pair_scores(query, query_E, gallery_ND, mate_E, device)
    best.scatter_reduce_(0, torch.from_numpy(query_E).to(query.device), score_E, "amax")
    best_E = np.flatnonzero(score_E.cpu().numpy() == best.cpu().numpy()[query_E])
    best_at = np.full(len(query), -1)
    found, first = np.unique(query_E[best_E], return_index=True)
    best_at[found] = mate_E[best_E[first]]
    return best, best_at
