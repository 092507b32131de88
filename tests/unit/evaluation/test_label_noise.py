"""Planted noise is found, on made-up embeddings of people."""

import numpy as np
import pytest

from kappaface_dist.evaluation.label_noise import PROBABLE, find_label_noise

PEOPLE, PHOTOS, SIZE = 150, 12, 64
SPREAD = 0.11  # of a photo around its person: a cosine of about 0.56 between two of one person


def people(rng, num_people=PEOPLE, photos=PHOTOS):
    """(unit embeddings, who is on each photo)."""
    centre = rng.normal(size=(num_people, SIZE))
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    person = np.repeat(np.arange(num_people), photos)
    embedding = centre[person] + rng.normal(scale=SPREAD, size=(len(person), SIZE))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return embedding.astype(np.float32), person


def rates(found, planted):
    """(precision, recall) of two sets."""
    found, planted = set(found), set(planted)
    return len(found & planted) / max(len(found), 1), len(found & planted) / max(len(planted), 1)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_flipped_labels(share):
    rng = np.random.default_rng(int(100 * share))
    embedding, person = people(rng)
    label = person.copy()
    flipped = rng.choice(len(label), int(share * len(label)), replace=False)
    label[flipped] = (label[flipped] + rng.integers(1, PEOPLE, len(flipped))) % PEOPLE
    noise = find_label_noise(embedding, label)
    found = np.flatnonzero(noise.wrong_I >= PROBABLE)
    if not share:
        assert len(found) == 0
    else:
        precision, recall = rates(found, flipped)
        assert precision > 0.98
        assert recall > 0.98
        # And it says who they are.
        assert (noise.nearest_I[found] == person[found]).mean() > 0.98
    assert noise.one == []
    assert not (noise.two_C >= PROBABLE).any()


def test_classes_that_are_two_people_and_people_who_are_two_classes():
    rng = np.random.default_rng(5)
    embedding, person = people(rng)
    label = person.copy()
    # 5 % of the classes hold somebody else as well, 5 % are halves of one person.
    mixed, halved = np.arange(0, 8), np.arange(20, 28)
    label[np.isin(person, mixed + 100)] -= 100
    second_half = np.arange(len(label)) % PHOTOS >= PHOTOS // 2
    label[np.isin(person, halved) & second_half] += PEOPLE
    label = np.unique(label, return_inverse=True)[1]
    noise = find_label_noise(embedding, label)
    assert (noise.wrong_I >= PROBABLE).mean() < 0.01
    two = np.flatnonzero(noise.two_C >= PROBABLE)
    assert rates(two, [label[person == p][0] for p in mixed]) == (1.0, 1.0)
    for c in two:
        of_class = label == c
        parts = person[of_class & noise.second_I], person[of_class & ~noise.second_I]
        assert [len(set(part)) for part in parts] == [1, 1]
    expected = {tuple(sorted(set(label[person == p]))) for p in halved}
    assert rates([pair[:2] for pair in noise.one], expected) == (1.0, 1.0)


def test_what_cannot_be_judged_is_said():
    embedding, person = people(np.random.default_rng(6), num_people=42, photos=5)
    # Of the last two one photo each, and the last has no embedding.
    kept = np.append(np.arange(200), [200, 205])
    embedding, label = embedding[kept], person[kept]
    embedding[-1] = np.nan
    noise = find_label_noise(embedding, label)
    assert np.isnan(noise.wrong_I[-2:]).all()
    assert np.isfinite(noise.wrong_I[:-2]).all()
    assert np.isnan(noise.two_C[40:]).all()
    assert noise.notes == [
        "1 images have no embedding",
        "1 images have no other image of their class beside them",
        "2 classes have too few images to be two people's",
    ]
    # One class alone has no other to sit in.
    assert np.isnan(find_label_noise(embedding[:5], label[:5]).wrong_I).all()


def test_people_who_look_alike_are_not_joined():
    """Half of them resemble one face: two kinds of nearest cosines, and none of one person."""
    rng = np.random.default_rng(7)
    centre = rng.normal(size=(PEOPLE, SIZE)) @ rng.normal(size=(SIZE, SIZE)) / np.sqrt(SIZE)
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    alike = rng.random(PEOPLE) < 0.5
    centre[alike] += centre[0]
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    person = np.repeat(np.arange(PEOPLE), PHOTOS)
    embedding = centre[person] + rng.normal(scale=SPREAD, size=(len(person), SIZE))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    wrong = rng.random(len(person)) < 0.3
    label = np.where(wrong, rng.integers(0, PEOPLE, len(person)), person)
    assert find_label_noise(embedding.astype(np.float32), label).one == []
