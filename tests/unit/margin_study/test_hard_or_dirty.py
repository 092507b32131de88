"""Hard classes and dirty ones, on made-up embeddings of which it is known who is on each photo."""

import numpy as np
import pytest

from kappaface_dist.margin_study.hard_or_dirty import draw_noise, judge_classes
from kappaface_dist.margin_study.reliability import Embedded

PEOPLE, PHOTOS, SIZE = 80, 12, 64
HARD, DIRTY, BOTH, TWO = (range(0, 8), range(8, 16), range(16, 19), range(19, 22))


def planted(seed=0, numbers=None):
    """(photos, whether each is of its class's person): hard people, and people with others among
    their photos; class c has the number numbers[c] in the data.
    """
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(PEOPLE + len(TWO), SIZE))
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    label = np.repeat(np.arange(PEOPLE), PHOTOS)
    person = label.copy()
    place = np.arange(len(label)) % PHOTOS
    # Photos of people from 30 on, of whom each has lost none: these are more photos of theirs.
    stray = np.isin(label, [*DIRTY, *BOTH]) & (place < 3)
    person[stray] = rng.permutation(np.arange(30, PEOPLE))[: stray.sum()]
    second = np.isin(label, TWO) & (place < 5)
    person[second] += PEOPLE - TWO[0]  # who have no class of their own
    spread = np.where(np.isin(person, [*HARD, *BOTH]), 0.14, 0.08)
    embedding = centre[person] + spread[:, None] * rng.normal(size=(len(person), SIZE))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    numbers = np.arange(PEOPLE) if numbers is None else np.asarray(numbers)
    photos = Embedded(embedding, numbers[label], index_I=1000 + np.arange(len(label)))
    return photos, person == label


@pytest.mark.parametrize("numbers", [None, 9_999_999 - 3 * np.arange(PEOPLE)])
def test_planted_classes_are_told_apart(numbers):
    embedded, own = planted(numbers=numbers)
    noise = judge_classes(embedded, 0.995)
    assert set(noise.wrong) == set(embedded.index_I[~own].tolist())
    number = np.arange(PEOPLE) if numbers is None else numbers
    found = {entry["class"]: entry for entry in noise.summary()["classes"]}
    assert len(found) == PEOPLE
    lowest = sorted(found, key=lambda c: found[c]["concentration_of_photos"])[:22]
    # By their concentrations alone they are one kind.
    assert set(lowest) == set(number[:22].tolist())
    for classes, kind, wrong in ((HARD, "hard", 0), (DIRTY, "dirty", 3), (BOTH, "both", 3)):
        for c in classes:
            entry = found[number[c]]
            assert (entry["kind"], entry["wrong"], entry["photos"]) == (kind, wrong, PHOTOS)
            assert entry["wrong_share"] == wrong / PHOTOS
    for c in TWO:
        entry = found[number[c]]
        assert entry["two_people"]
        assert (entry["kind"], entry["wrong"]) == ("dirty", 5)
    assert all(found[number[c]]["kind"] == "hard" for c in range(22, PEOPLE))

    # The concentrations, pair by pair.
    for c in (HARD[0], DIRTY[0], TWO[0]):
        for key, used in (("concentration_of_photos", own | True), ("without_wrong", own)):
            photos = embedded.embedding_ID[(embedded.label_I == number[c]) & used]
            cosine = photos @ photos.T
            rho = np.sqrt(cosine[~np.eye(len(photos), dtype=bool)].mean())
            assert found[number[c]][key] == pytest.approx(rho * (SIZE - rho**2) / (1 - rho**2))

    axes = draw_noise(noise).axes[0]
    assert [len(points.get_offsets()) for points in axes.collections] == [66, 11, 3]


def test_of_clean_data_no_class_is_dirty():
    embedded, own = planted()
    clean = Embedded(embedded.embedding_ID[own], embedded.label_I[own])
    noise = judge_classes(clean, 0.995)
    assert noise.wrong == frozenset()
    assert {entry["kind"] for entry in noise.summary()["classes"]} == {"hard"}


def test_classes_of_a_photo_or_none():
    """Nothing to compare is said, and breaks no picture."""
    assert judge_classes(Embedded(np.zeros((0, 1)), np.zeros(0, np.int64)), 0.995) is None
    alone = Embedded(np.eye(3), np.arange(3))
    noise = judge_classes(alone, 0.995)
    assert noise.summary()["median"] is None
    assert [entry["without_wrong"] for entry in noise.summary()["classes"]] == [None] * 3
    assert "3 images have no other image of their class beside them" in noise.notes
    draw_noise(noise)
    # Photos of one person as in the data, of equal embeddings: bounded as the margin has it.
    same = Embedded(np.ones((4, 1)), np.zeros(4, np.int64))
    assert judge_classes(same, 0.5).kappa_C[0] == pytest.approx(0.5 * 0.75 / 0.75)
