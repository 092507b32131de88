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
    scored_blocks,
    take_larger,
)


@dataclass(frozen=True)
class Search:
    """What every identification protocol needs to know of each query.

    Attributes:
        mate_Q: score of the best entry of the query's own identity; -inf where it has none.
        rank_Q: 1 + the number of other identities' entries with at least that score; 0 where the
            query has no mate. A tie counts against the model (scores that differ by less than
            float32's rounding may come out either way).
        other_Q: score of the best entry of another identity; -inf where there is none.
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
        """Whether the query's identity is in the gallery."""
        return self.rank_Q > 0


def search(
    query_QD: np.ndarray,
    query_identity_Q: np.ndarray,
    gallery_ND: np.ndarray,
    gallery_identity_N: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    query_rows: int = QUERY_ROWS,
    gallery_rows: int = GALLERY_ROWS,
) -> Search:
    """Search every query in the gallery.

    Args:
        query_QD, gallery_ND: unit embeddings, float32; may be memory maps.
        query_identity_Q, gallery_identity_N: whole numbers; distractors have a number of their own.
        query_rows, gallery_rows: largest size of a block of scores.
    """
    num_queries = len(query_QD)
    mate_Q = np.full(num_queries, -np.inf, dtype=np.float32)
    other_Q = np.full(num_queries, -np.inf, dtype=np.float32)
    rank_Q = np.zeros(num_queries, dtype=np.int64)
    mate_at_Q = np.full(num_queries, -1)
    other_at_Q = np.full(num_queries, -1)
    for block in query_blocks(query_QD, query_identity_Q, gallery_identity_N, device, query_rows):
        rows, query = block.rows, block.query
        by_entry = np.argsort(block.mate_E, kind="stable")
        query_E, mate_E = block.query_E[by_entry], block.mate_E[by_entry]
        mate, mate_at_Q[rows] = _best_mates(query, query_E, gallery_ND, mate_E)
        # A query without a mate has no rank: nothing is counted for it.
        bar = torch.where(mate > -torch.inf, mate, torch.inf)
        count = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        other, other_at = no_entries(query)
        for begin, score in scored_blocks(query, gallery_ND, gallery_rows):
            low, high = np.searchsorted(mate_E, (begin, begin + score.shape[1]))
            if high > low:
                at = torch.from_numpy(np.stack([query_E[low:high], mate_E[low:high] - begin]))
                score[tuple(at.to(score.device))] = -torch.inf
            largest = take_larger(score, begin, other, other_at)
            # Few mates are beaten by anything in a block: the others need no second look at it.
            beaten = torch.nonzero(largest >= bar)[:, 0]
            count[beaten] += (score[beaten] >= bar[beaten, None]).sum(dim=1)
        mate_Q[rows], other_Q[rows] = mate.cpu().numpy(), other.cpu().numpy()
        other_at_Q[rows] = other_at.cpu().numpy()
        has_mate = np.bincount(query_E, minlength=len(query)) > 0
        rank_Q[rows] = np.where(has_mate, count.cpu().numpy() + 1, 0)
    return Search(mate_Q, rank_Q, other_Q, mate_at_Q, other_at_Q)


def _best_mates(
    query: torch.Tensor, query_E: np.ndarray, gallery_ND: np.ndarray, mate_E: np.ndarray
) -> tuple[torch.Tensor, np.ndarray]:
    """Score and number of each query's best mate; mate_E ascends."""
    best = torch.full((len(query),), -torch.inf, device=query.device)
    score_E = pair_scores(query, query_E, gallery_ND, mate_E)
    best.scatter_reduce_(0, torch.from_numpy(query_E).to(query.device), score_E, "amax")
    best_E = np.flatnonzero(score_E.cpu().numpy() == best.cpu().numpy()[query_E])
    best_at = np.full(len(query), -1)
    found, first = np.unique(query_E[best_E], return_index=True)
    best_at[found] = mate_E[best_E[first]]
    return best, best_at
