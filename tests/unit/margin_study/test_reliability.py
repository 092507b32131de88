"""What two sets of photos say of each other, on classes whose law is known.

Shapes: C classes, I images, D embedding size.
"""

import numpy as np
import pytest
from scipy.stats import vonmises_fisher

from kappaface_dist.head import KappaFace
from kappaface_dist.margin_study.margin_report import ClassMeasures
from kappaface_dist.margin_study.reliability import (
    Embedded,
    error_of_sizes,
    kappa_of_sets,
    noise_share,
    reliability,
)

SIZE, PHOTOS = 32, 12


@pytest.fixture(scope="module")
def classes():
    """(embedded classes, their true κ): 200 of 12 photos, κ between 30 and 60."""
    rng = np.random.default_rng(0)
    kappa_C = rng.uniform(30.0, 60.0, 200)
    pole_D = np.eye(SIZE)[0]
    drawn = [vonmises_fisher(pole_D, k, seed=rng).rvs(PHOTOS) for k in kappa_C]
    label_I = np.repeat(np.arange(len(kappa_C)), PHOTOS)
    return Embedded(np.concatenate(drawn), label_I), kappa_C


def test_correlation_is_the_share_that_is_no_error(classes):
    embedded, kappa_C = classes
    rows = reliability(embedded, "unbiased", 0.995)
    assert [row["images"] for row in rows] == [2, 3, 5]
    assert {row["classes"] for row in rows} == {200}
    for row in rows:
        truth = kappa_C.var()
        assert row["common"] == pytest.approx(truth, rel=0.5)
        assert row["pearson"] == pytest.approx(truth / (truth + row["error"] ** 2), abs=0.12)
        # By the slope at the mean, where the estimate of two photos is far from straight.
        assert row["error"] == pytest.approx(row["expected_error"], rel=0.35)
    assert rows[0]["pearson"] < rows[1]["pearson"] < rows[2]["pearson"]
    assert rows[0]["error"] > rows[1]["error"] > rows[2]["error"]


def test_kappa_of_a_set_pair_by_pair(classes):
    z_CkD = classes[0].embedding_ID.reshape(-1, PHOTOS, SIZE)[:5, :4]
    for estimator in ("unbiased", "plugin"):
        found = kappa_of_sets(z_CkD, estimator, 0.995)
        for z_kD, kappa in zip(z_CkD, found, strict=True):
            cosine = z_kD @ z_kD.T
            pairs = cosine[~np.eye(4, dtype=bool)] if estimator == "unbiased" else cosine
            rho = np.sqrt(pairs.mean().clip(0))
            assert kappa == pytest.approx(rho * (SIZE - rho**2) / (1 - rho**2))


@pytest.mark.parametrize("differ", [True, False])
def test_share_of_the_spread_that_is_error(classes, differ):
    """Of classes of 2, 3 and 5 photos; where all are alike, all of it is."""
    embedded, kappa_C = classes
    if not differ:
        alike = vonmises_fisher(np.eye(SIZE)[0], 42.0, seed=np.random.default_rng(7))
        embedded = Embedded(alike.rvs(len(embedded.label_I)), embedded.label_I)
    rows = reliability(embedded, "unbiased", 0.995)
    size_C = np.tile([2, 3, 5, 5], 50)
    rng = np.random.default_rng(1)
    pole_D = np.eye(SIZE)[0]
    truth_C = kappa_C if differ else np.full(200, 42.0)
    seen_C = np.array(
        [
            kappa_of_sets(vonmises_fisher(pole_D, k, seed=rng).rvs(n)[None], "unbiased", 0.995)[0]
            for k, n in zip(truth_C, size_C, strict=True)
        ]
    )
    share = noise_share(rows, measures(size_C, seen_C))
    expected = 1 - truth_C.var() / seen_C.var()
    assert share == pytest.approx(expected, abs=0.1)
    assert noise_share([], measures(size_C, seen_C)) is None


def measures(count_C, kappa_C):
    return ClassMeasures(None, 1, KappaFace(), None, count_C, kappa_C, kappa_C, [])


def test_errors_of_other_sizes():
    rows = [{"images": 2, "error": 8.0}, {"images": 8, "error": 2.0}]
    found = error_of_sizes(rows, np.array([2, 4, 8, 32]))
    np.testing.assert_allclose(found, [8.0, 4.0, 2.0, 1.0])


def test_too_few_classes_have_no_reliability(classes):
    embedded = classes[0]
    few = embedded.label_I < 7
    assert reliability(Embedded(embedded.embedding_ID[few], embedded.label_I[few]), "", 0.9) == []
