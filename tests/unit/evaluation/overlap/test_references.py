"""Strangers of people with fewer images than the set has: their chances are what they say."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from kappaface_dist.evaluation.embedding.store import StoredEmbeddings
from kappaface_dist.evaluation.one_to_many.nearest import nearest_entries
from kappaface_dist.evaluation.overlap.people import People, mean_embeddings
from kappaface_dist.evaluation.overlap.references import strangers_of

SIZE = 24
NOISE = 1.5  # of an image, beside people of 1


def made_up(folder, rng, num_people, each):
    """People and their stored embeddings; a person's images lie scattered over the whole set."""
    person_I = rng.permutation(np.repeat(np.arange(num_people), each))
    look_PD = rng.normal(size=(num_people, SIZE))
    rows_ID = look_PD[person_I] + NOISE * rng.normal(size=(len(person_I), SIZE))
    folder.mkdir()
    save_file({"embedding": rows_ID.astype(np.float32)}, folder / "part_000000.safetensors")
    people = People(
        np.arange(num_people), None, person_I, lambda i: b"", str, np.bincount(person_I)
    )
    return people, StoredEmbeddings(folder, len(person_I), [], 0)


@pytest.mark.parametrize(("each", "of_a_query"), [(24, 2), (24, 6), (8, 8)])
def test_the_chances_of_strangers_are_uniform(tmp_path, each, of_a_query):
    """Of people who are in no set a tenth has a chance below 0.1, however many images each has."""
    rng = np.random.default_rng(0)
    first, first_stored = made_up(tmp_path / "first", rng, 160, each)
    second, second_stored = made_up(tmp_path / "second", rng, 300, of_a_query)
    mean_ND, count_N = mean_embeddings(first_stored, first.person_I, 160)
    mean_QD, _ = mean_embeddings(second_stored, second.person_I, 300)
    assert (count_N == each).all()
    strangers = strangers_of(first, first_stored, mean_ND, np.arange(160), of_a_query, "cpu")
    score_QK, _ = nearest_entries(mean_QD, mean_ND, 1)
    chance_Q = strangers.chances(score_QK[:, 0])
    for share in (0.1, 0.3, 0.6):
        # Four standard deviations of 160 references and 300 queries.
        spread = 4 * np.sqrt(share * (1 - share) * (1 / 160 + 1 / 300))
        assert (chance_Q < share).mean() == pytest.approx(share, abs=spread)
