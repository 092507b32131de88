"""Parts of a search over the score matrix, in blocks that fit a cache.

Shapes: Q queries, N gallery entries, D embedding size, E (query, mate) combinations, X anything.
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
class QueryBlock:
    """Consecutive queries and their mates in the gallery.

    Attributes:
        rows: the queries' numbers.
        query: their embeddings, on the device.
        query_E: the query of each combination, counted from the first of the block.
        mate_E: its mate; combinations are in the order of queries, then of mates.
    """

    rows: slice
    query: torch.Tensor
    query_E: np.ndarray
    mate_E: np.ndarray


def query_blocks(
    query_QD: np.ndarray,
    identity_Q: np.ndarray,
    identity_N: np.ndarray,
    device: torch.device | str,
    most: int,
) -> Iterator[QueryBlock]:
    """Queries on the device: at most so many, with at most MAX_MATES mates (or a single query).

    Args:
        identity_N: of the gallery: entries of the query's own identity are its mates.
    """
    order_N = np.argsort(identity_N, kind="stable")
    sorted_N = identity_N[order_N]
    first_Q = np.searchsorted(sorted_N, identity_Q, side="left")
    num_mates_Q = np.searchsorted(sorted_N, identity_Q, side="right") - first_Q
    start, total = 0, np.cumsum(num_mates_Q)
    while start < len(total):
        before = total[start - 1] if start else 0
        fits = int(np.searchsorted(total, before + MAX_MATES, side="right"))
        rows = slice(start, min(start + most, max(fits, start + 1), len(total)))
        yield QueryBlock(
            rows,
            rows_on(query_QD, rows, device),
            np.repeat(np.arange(rows.stop - start), num_mates_Q[rows]),
            order_N[_ranges(first_Q[rows], num_mates_Q[rows])],
        )
        start = rows.stop


def scored_blocks(
    query: torch.Tensor, gallery_ND: np.ndarray, most: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """(number of the first entry, scores of all queries with it and the next ones)."""
    for begin in range(0, len(gallery_ND), most):
        part = slice(begin, begin + most)
        yield begin, query @ rows_on(gallery_ND, part, query.device).T


def _ranges(first_Q: np.ndarray, num_Q: np.ndarray) -> np.ndarray:
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
    query: torch.Tensor, query_E: np.ndarray, gallery_ND: np.ndarray, mate_E: np.ndarray
) -> torch.Tensor:
    """The score of each combination."""
    scores = [query.new_empty(0)]
    for begin in range(0, len(mate_E), GALLERY_ROWS):
        part = slice(begin, begin + GALLERY_ROWS)
        rows = query[torch.from_numpy(query_E[part]).to(query.device)]
        scores.append((rows * rows_on(gallery_ND, mate_E[part], query.device)).sum(dim=1))
    return torch.cat(scores)


def rows_on(
    rows_XD: np.ndarray, part: slice | np.ndarray, device: torch.device | str
) -> torch.Tensor:
    """Rows as float32 on the device, without a copy where they are that already."""
    chosen = np.ascontiguousarray(rows_XD[part], dtype=np.float32)
    if not chosen.flags.writeable:
        chosen = chosen.copy()  # a read-only memory map: torch shares writable memory only
    return torch.from_numpy(chosen).to(device)
