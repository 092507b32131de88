"""Who of one set is in another, or twice in one: found by class means, looked at by images.

Shapes: Q people of the second set, N of the first, K nearest, D embedding size, A B images of two
people, X claims.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from kappaface_dist.evaluation.embedding.store import StoredEmbeddings
from kappaface_dist.evaluation.one_to_many.nearest import nearest_entries
from kappaface_dist.evaluation.overlap.claims import (
    NUM_NEAREST,
    Claims,
    Strangers,
    check_number,
    claim,
    each_once,
    take,
)
from kappaface_dist.evaluation.overlap.people import (
    People,
    chosen_embeddings,
    mean_embeddings,
)
from kappaface_dist.evaluation.overlap.references import strangers_of


@dataclass(frozen=True)
class Match:
    """Two people of two sets, or of one, and how alike they are.

    Attributes:
        first, second: their positions in the sets' lists of people.
        cosine: of their mean embeddings.
        chance: that the nearest of strangers comes as near.
        image_cosine: mean over all pairs of their images.
        image_share: of the second's images that are nearest to the first, of all classes that are
            near to the second.
        first_image, second_image: the two that are most alike.
    """

    first: int
    second: int
    cosine: float
    chance: float
    image_cosine: float
    image_share: float
    first_image: int
    second_image: int


@dataclass(frozen=True)
class Overlap:
    """What a search found.

    Attributes:
        matches: that are one person, the surest first.
        near: the nearest that were not claimed, one for each person of the second set at most.
        best_Q: cosine of each searched person's nearest; searched_Q: who that is.
        num_first: people of the first set that have an embedding.
        largest_chance: up to which claims were made.
    """

    matches: list[Match]
    near: list[Match]
    best_Q: np.ndarray
    searched_Q: np.ndarray
    num_first: int
    largest_chance: float

    @property
    def false_match_rate(self) -> float:
        """The chance of a false claim for one person, per comparison."""
        return self.largest_chance / max(1, self.num_first)


def find_overlap(
    first: People,
    first_stored: StoredEmbeddings,
    second: People | None,
    second_stored: StoredEmbeddings | None,
    *,
    false_share: float,
    num_near: int = 24,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Overlap:
    """Search the people of the second set in the first; without a second, in the first itself.

    Args:
        first_stored, second_stored: embeddings of the images that the sets name.
        false_share: largest expected share of false ones among the matches.
        num_near: how many of those not claimed are described.
        progress: called with the number of people that were searched since the last call.

    Raises:
        ValueError: there are too few people to estimate false matches from, or nobody to search.
    """
    alone = second is None or second_stored is None
    mean_ND, known_N = _known_means(first, first_stored)
    mean_QD, known_Q = (mean_ND, known_N) if alone else _known_means(second, second_stored)  # type: ignore[arg-type]
    check_number(len(mean_ND) - alone)
    score_QK, at_QK = nearest_entries(
        mean_QD, mean_ND, NUM_NEAREST, not_itself=alone, device=device, progress=progress
    )
    strangers = Strangers(score_QK)
    if not alone:
        like = np.bincount((second or first).person_I)  # as many images, as much noise
        wanted = int(np.median(like[like > 0]))
        strangers = strangers_of(first, first_stored, mean_ND, known_N, wanted, device)
    claims = claim(score_QK, at_QK, strangers, false_share)
    if alone:
        claims = each_once(claims)
    near = _not_claimed(score_QK, at_QK, strangers, claims, num_near, alone)
    images_of = _Images(first, first_stored, second, second_stored)

    def described(found: Claims) -> list[Match]:
        images_of.load(known_N[found.entry_X], known_Q[found.query_X])
        return [
            images_of.match(
                int(known_N[found.entry_X[x]]),
                int(known_Q[q]),
                mean_ND[[found.entry_X[x], *at_QK[q][at_QK[q] != found.entry_X[x]]]],
                float(found.score_X[x]),
                float(found.chance_X[x]),
            )
            for x, q in enumerate(found.query_X.tolist())
        ]

    return Overlap(
        matches=described(claims),
        near=described(near),
        best_Q=score_QK[:, 0],
        searched_Q=known_Q,
        num_first=len(mean_ND),
        largest_chance=claims.largest_chance,
    )


def _known_means(people: People, stored: StoredEmbeddings) -> tuple[np.ndarray, np.ndarray]:
    """Means of the people who have one, and who they are."""
    mean_PD, count_P = mean_embeddings(stored, people.person_I, len(people.label_P))
    known_P = np.flatnonzero(count_P)
    if not len(known_P):
        raise ValueError(f"none of {len(people.person_I)} images is readable: {people.where(0)}")
    return (mean_PD if len(known_P) == len(mean_PD) else mean_PD[known_P]), known_P


def _not_claimed(
    score_QK: np.ndarray,
    at_QK: np.ndarray,
    strangers: Strangers,
    claims: Claims,
    most: int,
    alone: bool,
) -> Claims:
    """The surest that were not sure enough, one for each person who is in no claim."""
    everybody = claim(score_QK[:, :1], at_QK[:, :1], strangers, 1.0)
    taken = set(claims.query_X.tolist()) | (set(claims.entry_X.tolist()) if alone else set())
    kept: list[int] = []
    for x, q in enumerate(everybody.query_X.tolist()):
        if len(kept) == most:
            break
        if q not in taken:
            kept.append(x)
            taken |= {q, int(everybody.entry_X[x])} if alone else {q}
    return take(everybody, np.array(kept, dtype=np.int64))


class _Images:
    """The images of the few people who are looked at one by one."""

    def __init__(
        self,
        first: People,
        first_stored: StoredEmbeddings,
        second: People | None,
        second_stored: StoredEmbeddings | None,
    ):
        self.sides = [(first, first_stored), (second or first, second_stored or first_stored)]
        self.rows: list[dict[int, tuple[np.ndarray, np.ndarray]]] = [{}, {}]

    def load(self, *people_of: np.ndarray) -> None:
        """Read the embeddings of these people's images, of both sides, in one pass each."""
        for side, wanted in enumerate(people_of):
            people, stored = self.sides[side]
            number_X = np.flatnonzero(np.isin(people.person_I, wanted))
            if not len(number_X):
                continue
            rows_XD = chosen_embeddings(stored, number_X)
            good = np.isfinite(rows_XD).all(axis=1)
            number_X, rows_XD = number_X[good], rows_XD[good]
            order = np.argsort(people.person_I[number_X], kind="stable")
            owner, begin = np.unique(people.person_I[number_X[order]], return_index=True)
            for person, part in zip(owner.tolist(), np.split(order, begin[1:]), strict=True):
                self.rows[side][person] = number_X[part], rows_XD[part]

    def match(
        self, first: int, second: int, candidate_KD: np.ndarray, cosine: float, chance: float
    ) -> Match:
        """Describe a pair; the first of the candidates is the first person's mean."""
        number_A, rows_AD = self.rows[0][first]
        number_B, rows_BD = self.rows[1][second]
        cosine_BA = rows_BD @ rows_AD.T
        at_B, at_A = np.unravel_index(int(cosine_BA.argmax()), cosine_BA.shape)
        return Match(
            first=first,
            second=second,
            cosine=cosine,
            chance=chance,
            image_cosine=float(cosine_BA.mean()),
            image_share=float(np.mean((rows_BD @ candidate_KD.T).argmax(axis=1) == 0)),
            first_image=int(number_A[at_A]),
            second_image=int(number_B[at_B]),
        )
