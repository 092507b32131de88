"""Readings of few photos against the others, on classes whose law is known.

Shapes: C classes, I images, D embedding size.
"""

import numpy as np
import pytest
from scipy.stats import spearmanr, vonmises_fisher

from kappaface_dist.margin_study import estimates
from kappaface_dist.margin_study.estimates import compare_estimates, readings
from kappaface_dist.margin_study.reliability import Embedded

SIZE, PHOTOS, PEOPLE = 24, 22, 60


@pytest.fixture(scope="module")
def embedded():
    """60 people of 22 photos, κ of 15 to 90; the length of an embedding knows κ, the centre is
    the true one."""
    rng = np.random.default_rng(0)
    kappa_C = rng.uniform(15.0, 90.0, PEOPLE)
    pole_D = np.eye(SIZE)[0]
    drawn = np.stack([vonmises_fisher(pole_D, k, seed=rng).rvs(PHOTOS) for k in kappa_C])
    label_I = np.repeat(np.arange(PEOPLE) * 3 + 1, PHOTOS)  # as chosen among others
    length_I = np.repeat(kappa_C, PHOTOS) * rng.lognormal(0.0, 0.05, len(label_I))
    return Embedded(drawn.reshape(-1, SIZE), label_I, length_I, drawn[:, :, 0].reshape(-1)), kappa_C


def test_readings_photo_by_photo(embedded):
    data, _ = embedded
    photos = [np.array([0, 1, 2]), np.array([22, 25]), np.arange(44, 54)]
    found = readings(data, photos)
    for p, index in enumerate(photos):
        z_nD = data.embedding_ID[index]
        cosine = z_nD @ z_nD.T
        pairs = cosine[~np.eye(len(index), dtype=bool)].mean().clip(0, 1)
        assert found["unbiased"][p] == pytest.approx(pairs)
        assert found["plugin"][p] == pytest.approx(cosine.mean())
        assert found["target_cosine"][p] == pytest.approx(z_nD[:, 0].mean())
        assert found["length"][p] == pytest.approx(data.length_I[index].mean())
    mean = found["unbiased"].mean()
    expected = (2 * mean + np.array([3, 2, 10]) * found["unbiased"]) / np.array([5, 4, 12])
    np.testing.assert_allclose(found["shrinkage 2"], expected)
    assert "target_cosine" not in readings(Embedded(data.embedding_ID, data.label_I), photos)


def test_what_knows_more_is_told(embedded, monkeypatch):
    data, kappa_C = embedded
    monkeypatch.setattr(estimates, "DRAWS", 40)
    rows = compare_estimates(data, np.array([1, 1, 2, 2, 3, 9, 40]))
    assert [(row["photos"], row["people"]) for row in rows] == [
        (photos, PEOPLE) for photos in ("2", "3", "5", "10", "2 to 10")
    ]
    by_photos = {row["photos"]: row for row in rows}
    few = by_photos["2"]
    # The same order, where all have as many photos.
    for name in ("plugin", "shrinkage 2", "shrinkage 5", "empirical_bayes"):
        assert few["correlation"][name] == pytest.approx(few["correlation"]["unbiased"], abs=0.02)
    assert (
        by_photos["2 to 10"]["correlation"]["plugin"]
        < by_photos["2 to 10"]["correlation"]["unbiased"]
    )
    # A length that knows κ is nearly as good as the truth's own reading of it.
    limit = np.mean(
        [
            spearmanr(kappa_C, readings(data, _photos(20, seed))["unbiased"]).statistic
            for seed in range(5)
        ]
    )
    assert few["correlation"]["length"] == pytest.approx(limit, abs=0.08)
    for name in ("length", "with length", "with both"):
        assert few["difference"][name][0] > 0, name
    sizes = [by_photos[photos]["correlation"]["unbiased"] for photos in ("2", "3", "5", "10")]
    assert sizes == sorted(sizes)


def test_margins_of_few_and_of_the_others(embedded, monkeypatch):
    """Pearson's correlation of w^κ, written out for one draw of all people's first photos."""
    data, _ = embedded
    squared_P, truth_P = (
        readings(data, [np.arange(a, b) + PHOTOS * c for c in range(PEOPLE)])["unbiased"]
        for a, b in ((0, 5), (5, PHOTOS))
    )

    def hard(squared):
        rho = np.sqrt(squared.clip(0, 0.995**2))
        kappa = rho * (SIZE - rho**2) / (1 - rho**2)
        z = (kappa - kappa.mean()) / kappa.std()
        return 1 / (1 + np.exp(0.4 * z.clip(-5, 5)))

    margin = estimates.MARGINS["margin, unbiased, measured"][1]
    for squared in (squared_P, truth_P):
        np.testing.assert_allclose(estimates.margins_from(squared, margin, SIZE), hard(squared))
    expected = np.corrcoef(hard(squared_P), hard(truth_P))[0, 1]
    monkeypatch.setattr(estimates, "DRAWS", 30)
    row = compare_estimates(data, np.array([3]))[2]
    assert row["photos"] == "5"
    assert row["correlation"]["margin, unbiased, measured"] == pytest.approx(expected, abs=0.1)


def _photos(number, seed):
    rng = np.random.default_rng(seed)
    return [rng.permutation(PHOTOS)[:number] + PHOTOS * c for c in range(PEOPLE)]


def test_too_few_people_say_nothing(embedded):
    data, _ = embedded
    few_I = data.label_I < 3 * 19
    part = Embedded(data.embedding_ID[few_I], data.label_I[few_I])
    assert compare_estimates(part, np.array([2, 3])) == []
