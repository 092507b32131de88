"""MegaFace's protocol: each pair of one identity's images, alone among the distractors.

Scores are cosines of unit embeddings. Nothing but one block of them is ever held.
Shapes: Q probes, N distractors, D embedding size, M other images of a probe's identity, E
(probe, mate) combinations.
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
class DistractorSearch:
    """Searches for each other image of a probe's identity, alone among the distractors.

    Attributes:
        probe_E, mate_E: every ordered pair of two images of one identity, in the order of probes.
        score_E: of the pair.
        rank_E: 1 + the number of distractors with at least that score.
        other_Q, other_at_Q: the best distractor of each probe that has a mate: score, number; -inf
            and -1 of the other probes.
    """

    probe_E: np.ndarray
    mate_E: np.ndarray
    score_E: np.ndarray
    rank_E: np.ndarray
    other_Q: np.ndarray
    other_at_Q: np.ndarray


def search_distractors(
    probe_QD: np.ndarray,
    identity_Q: np.ndarray,
    distractor_ND: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    query_rows: int = QUERY_ROWS,
    gallery_rows: int = GALLERY_ROWS,
) -> DistractorSearch:
    """MegaFace's protocol: each probe looks for each other image of its identity among distractors.

    Kemelmacher-Shlizerman et al., "The MegaFace Benchmark" (2016), section 4: the gallery is all
    distractors and one image of the probe's identity, for every such image in turn.
    """
    none = np.zeros(0, dtype=np.int64)
    probes, mates, scores, ranks = [none], [none], [none.astype(np.float32)], [none]
    other_Q = np.full(len(probe_QD), -np.inf, dtype=np.float32)
    other_at_Q = np.full(len(probe_QD), -1)
    for block in query_blocks(probe_QD, identity_Q, identity_Q, device, query_rows):
        query, first = block.query, block.rows.start
        others = block.query_E + first != block.mate_E
        query_E, mate_E = block.query_E[others], block.mate_E[others]
        if not len(query_E):
            continue
        score_E = pair_scores(query, query_E, probe_QD, mate_E)
        # Thresholds of each probe in ascending order, filled up with infinity.
        place_E = np.arange(len(query_E)) - np.searchsorted(query_E, query_E)
        at = tuple(torch.from_numpy(np.stack([query_E, place_E])).to(query.device))
        width = int(place_E.max()) + 1
        threshold_QM = torch.full((len(query), width), torch.inf, device=query.device)
        threshold_QM[at] = score_E
        sorted_QM, position_QM = threshold_QM.sort(dim=1)
        other, other_at = no_entries(query)
        bins_QM = torch.zeros(len(query), width + 1, dtype=torch.int64, device=query.device)
        for begin, score in scored_blocks(query, distractor_ND, gallery_rows):
            take_larger(score, begin, other, other_at)
            passed = torch.searchsorted(sorted_QM, score, right=True)
            bins_QM.scatter_add_(1, passed, torch.ones_like(passed))
        # A distractor that passes i thresholds passes the lowest i.
        above_QM = bins_QM.flip(1).cumsum(1).flip(1)[:, 1:]
        count_QM = torch.empty_like(above_QM).scatter_(1, position_QM, above_QM)
        ranks.append(1 + count_QM[at].cpu().numpy())
        probes.append(query_E + first)
        mates.append(mate_E)
        scores.append(score_E.cpu().numpy())
        has_mate = np.bincount(query_E, minlength=len(query)) > 0
        other_Q[block.rows] = np.where(has_mate, other.cpu().numpy(), -np.inf)
        other_at_Q[block.rows] = np.where(has_mate, other_at.cpu().numpy(), -1)
    return DistractorSearch(
        probe_E=np.concatenate(probes),
        mate_E=np.concatenate(mates),
        score_E=np.concatenate(scores),
        rank_E=np.concatenate(ranks),
        other_Q=other_Q,
        other_at_Q=other_at_Q,
    )
