"""Parts of a search over the score matrix, in blocks that fit a cache.

Shapes: Q queries, N gallery entries, D embedding size, E (query, mate) combinations, X anything.
"""

from collections.abc import Iterator

import numpy as np
import torch

QUERY_ROWS = 1024
GALLERY_ROWS = 4096
# Combinations of queries and mates handled at a time; a block of queries is cut to stay below.
MAX_MATES = 1 << 20


def query_blocks(num_mates_Q: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Consecutive queries: at most so many, with at most MAX_MATES mates (or a single query)."""
    start, total = 0, np.cumsum(num_mates_Q)
    while start < len(total):
        before = total[start - 1] if start else 0
        fits = int(np.searchsorted(total, before + MAX_MATES, side="right"))
        stop = min(start + most, max(fits, start + 1), len(total))
        yield start, stop
        start = stop


def ranges(first_Q: np.ndarray, num_Q: np.ndarray) -> np.ndarray:
    """first, first + 1, ... for each query, one after the other."""
    offset = np.repeat(first_Q - np.concatenate([[0], np.cumsum(num_Q)[:-1]]), num_Q)
    return np.arange(num_Q.sum()) + offset


def no_entries(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best entry of each query before there is any: score, number."""
    score = torch.full((len(query),), -torch.inf, device=query.device)
    return score, torch.full((len(query),), -1, device=query.device)


def take_larger(
    score: torch.Tensor, begin: int, best: torch.Tensor, best_at: torch.Tensor
) -> torch.Tensor:
    """Update the best entries by a block whose first column is entry `begin`; returns its best."""
    largest = score.amax(dim=1)
    # Fewer queries with each block find a better one: only they are looked at again.
    rows = torch.nonzero(largest > best)[:, 0]
    best_at[rows] = begin + score[rows].argmax(dim=1)
    best[rows] = largest[rows]
    return largest


def pair_scores(
    query: torch.Tensor,
    query_E: np.ndarray,
    gallery_ND: np.ndarray,
    mate_E: np.ndarray,
    device: torch.device | str,
) -> torch.Tensor:
    """The score of each combination."""
    scores = [query.new_empty(0)]
    for begin in range(0, len(mate_E), GALLERY_ROWS):
        part = slice(begin, begin + GALLERY_ROWS)
        rows = query[torch.from_numpy(query_E[part]).to(query.device)]
        scores.append((rows * rows_on(gallery_ND, mate_E[part], device)).sum(dim=1))
    return torch.cat(scores)


def rows_on(
    rows_XD: np.ndarray, part: slice | np.ndarray, device: torch.device | str
) -> torch.Tensor:
    """Rows as float32 on the device, without a copy where they are that already."""
    chosen = np.ascontiguousarray(rows_XD[part], dtype=np.float32)
    if not chosen.flags.writeable:
        chosen = chosen.copy()  # a read-only memory map: torch shares writable memory only
    return torch.from_numpy(chosen).to(device)
