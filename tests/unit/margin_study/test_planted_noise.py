"""Wrong labels are planted as asked, known as planted, and taken out again as a user would."""

import json

import numpy as np
import pytest

from kappaface_dist.margin_study.arms import choose_arms, parse_arm
from kappaface_dist.margin_study.dataset import StudyImages
from kappaface_dist.margin_study.planted_noise import Noise, count_found, labelled, plant

COUNT_C = np.array([2, 3, 5] + 37 * [8, 9, 12])
TRUE_I = np.random.default_rng(0).permutation(np.repeat(np.arange(len(COUNT_C)), COUNT_C))
NOISE = Noise(0.1, 0.05)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_planted_is_what_is_wrong(seed):
    planted = plant(TRUE_I, NOISE, seed)
    assert planted.label_I.tolist() == plant(TRUE_I, NOISE, seed).label_I.tolist()
    wrong_I = np.zeros(len(TRUE_I), dtype=bool)
    wrong_I[list(planted.truth["wrong_images"])] = True
    assert wrong_I.sum() == round(0.1 * len(TRUE_I))
    assert set(planted.label_I) == set(range(planted.label_I.max() + 1))
    # Who is in a class, and where a person is, by the images that are not flipped.
    right = set(zip(planted.label_I[~wrong_I].tolist(), TRUE_I[~wrong_I].tolist(), strict=True))
    people = {c: {p for k, p in right if k == c} for c, _ in right}
    classes = {p: {c for c, k in right if k == p} for _, p in right}
    assert planted.truth["two_people"] == {c for c, found in people.items() if len(found) == 2}
    pairs = {tuple(sorted(found)) for found in classes.values() if len(found) == 2}
    assert planted.truth["one_person"] == pairs
    assert (len(planted.truth["two_people"]), len(pairs)) == (3, 3)  # of 114 classes 5 %
    mixed = {p for c in planted.truth["two_people"] for p in people[c]}
    mixed |= {p for p, found in classes.items() if len(found) == 2}
    assert COUNT_C[list(mixed)].min() >= 8
    # Whose is flipped is in nobody's class of his.
    for image in planted.truth["wrong_images"]:
        assert (planted.label_I[image], TRUE_I[image]) not in right
    assert set(planted.truth["wrong_images"]) != set(plant(TRUE_I, NOISE, 2).truth["wrong_images"])


def test_nothing_is_planted_where_nothing_is_asked():
    planted = plant(TRUE_I, Noise(), 0)
    np.testing.assert_array_equal(planted.label_I, TRUE_I)
    assert not any(planted.truth.values())


def test_labels_of_each_arm(tmp_path):
    """A report that lists all that is planted leaves what is right, classes of two people too."""
    image_IHW3 = np.arange(len(TRUE_I), dtype=np.uint16).view(np.uint8).reshape(-1, 1, 2, 1)
    data = StudyImages(image_IHW3, TRUE_I, COUNT_C, *[np.zeros(0)] * 3)
    planted = plant(TRUE_I, NOISE, 4)
    report = {kind: sorted(found) for kind, found in planted.truth.items()}
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(report))
    made = {
        labels: labelled(data, NOISE, 4, labels, path) for labels in ("given", "cleaned", "truth")
    }
    for arm in made.values():
        np.testing.assert_array_equal(arm.count_C, np.bincount(arm.label_I))
        assert arm.count_C.min() > 0
    np.testing.assert_array_equal(made["given"].label_I, planted.label_I)
    right = np.setdiff1d(np.arange(len(TRUE_I)), report["wrong_images"])
    for labels in ("cleaned", "truth"):
        kept = made[labels].image_IHW3.reshape(-1, 2).view(np.uint16).ravel()
        np.testing.assert_array_equal(kept, right)
    names, expected = np.unique(TRUE_I[right], return_inverse=True)
    np.testing.assert_array_equal(made["truth"].label_I, expected)
    # Cleaned: one class a person again, but for the three that two share.
    pairs = set(zip(made["cleaned"].label_I.tolist(), TRUE_I[right].tolist(), strict=True))
    assert len(pairs) == len(names)
    assert len({c for c, _ in pairs}) == len(names) - 3


def test_counts_of_what_is_found(tmp_path):
    truth = plant(TRUE_I, NOISE, 0).truth
    wrong = sorted(truth["wrong_images"])
    listed = {
        "wrong_images": wrong[:-2] + [i for i in range(len(TRUE_I)) if i not in wrong][:1],
        "two_people": [],
        "one_person": [list(pair) for pair in truth["one_person"]],
    }
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(listed))
    found = count_found(TRUE_I, NOISE, [path])
    number = len(wrong)
    assert found == {
        "flipped": 0.1,
        "mixed": 0.05,
        "wrong_images": {"planted": [number], "found": [number - 1], "right": [number - 2]},
        "two_people": {"planted": [3], "found": [0], "right": [0]},
        "one_person": {"planted": [3], "found": [3], "right": [3]},
    }


def test_bad_requests_are_one_sentence():
    with pytest.raises(ValueError, match=r"--flip is 0\.7, expected a share, 0 to 0\.5"):
        Noise(0.7)
    with pytest.raises(ValueError, match=r"--mixed is nan, expected a share"):
        Noise(0.1, float("nan"))
    with pytest.raises(ValueError, match=r"--mixed is 0\.5, which takes 3 classes of 8 images or"):
        plant(np.arange(4).repeat(4), Noise(0.0, 0.5), 0)
    with pytest.raises(ValueError, match="--arms names 'cleaned', which is for --flip, expected"):
        choose_arms("cleaned", [])
    with pytest.raises(ValueError, match=r"head\.robust is both, but this margin has no class"):
        parse_arm("fixed:name=arcface,robust=both")


def test_the_arms_of_planted_noise():
    chosen = choose_arms(None, ["soft:robust=loss"], "kappaface", noisy=True)
    assert list(chosen) == [
        *("kappaface", "cleaned", "truth", "robust", "robust_loss", "robust_statistics", "soft")
    ]
    assert [arm.robust for arm in chosen.values()] == [
        *("off", "off", "off", "both", "loss", "statistics", "loss")
    ]
    # The report is by KappaFace's network.
    assert list(choose_arms("cleaned", [], "truth", noisy=True)) == [
        *("kappaface", "cleaned", "truth")
    ]
