"""The entries of a gallery that are most like each query, over the score matrix in blocks.

Scores are cosines of unit embeddings. Nothing but one block of them is ever held.
Shapes: Q queries, N gallery entries, D embedding size, K nearest entries.
"""

from collections.abc import Callable

import numpy as np
import torch

from kappaface_dist.evaluation.one_to_many.score_blocks import (
    GALLERY_ROWS,
    QUERY_ROWS,
    rows_on,
    scored_blocks,
)


def nearest_entries(
    query_QD: np.ndarray,
    gallery_ND: np.ndarray,
    count: int,
    *,
    not_itself: bool = False,
    device: torch.device | str = "cpu",
    query_rows: int = QUERY_ROWS,
    gallery_rows: int = GALLERY_ROWS,
    progress: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest entries of each query, the nearest first.

    Args:
        query_QD, gallery_ND: unit embeddings, float32; may be memory maps.
        count: K, at most as many as there are.
        not_itself: query q is entry q, which is not among its nearest.
        query_rows, gallery_rows: largest size of a block of scores.
        progress: called with the number of queries that were searched since the last call.

    Returns:
        score_QK, float32, descending, and at_QK, the entries' numbers.
    """
    num_others = len(gallery_ND) - not_itself
    assert 0 < count <= num_others, f"{count} of {num_others} entries"
    score_QK = np.empty((len(query_QD), count), dtype=np.float32)
    at_QK = np.empty((len(query_QD), count), dtype=np.int64)
    for start in range(0, len(query_QD), query_rows):
        rows = slice(start, min(start + query_rows, len(query_QD)))
        query = rows_on(query_QD, rows, device)
        best = torch.full((len(query), count), -torch.inf, device=query.device)
        best_at = torch.full((len(query), count), -1, device=query.device)
        for begin, score in scored_blocks(query, gallery_ND, gallery_rows):
            if not_itself:
                own = range(max(begin, rows.start), min(begin + score.shape[1], rows.stop))
                at = torch.tensor(own, dtype=torch.int64, device=query.device)
                score[at - rows.start, at - begin] = -torch.inf
            # Fewer queries with each block find a nearer one: only they are sorted again.
            better = torch.nonzero(score.amax(dim=1) > best[:, -1])[:, 0]
            found, found_at = score[better].topk(min(count, score.shape[1]), dim=1)
            both = torch.cat([best[better], found], dim=1)
            both_at = torch.cat([best_at[better], found_at + begin], dim=1)
            best[better], order = both.topk(count, dim=1)
            best_at[better] = both_at.gather(1, order)
        score_QK[rows], at_QK[rows] = best.cpu().numpy(), best_at.cpu().numpy()
        if progress is not None:
            progress(rows.stop - rows.start)
    return score_QK, at_QK
