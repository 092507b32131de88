"""Two kinds of numbers or one, against scikit-learn's mixtures."""

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from kappaface_dist.mixture import fit_mixture


def two_kinds(rng, low, high, low_std=0.1, high_std=0.1):
    return np.concatenate([rng.normal(-0.4, low_std, low), rng.normal(0.5, high_std, high)])


@pytest.mark.parametrize(
    ("low", "high", "std"), [(100, 900, 0.1), (30, 970, 0.2), (500, 500, 0.15)]
)
def test_it_is_the_likeliest_mixture(low, high, std):
    score = two_kinds(np.random.default_rng(1), low, high, std, std)
    found = fit_mixture(score)
    theirs = GaussianMixture(
        2, covariance_type="tied", n_init=5, random_state=0, tol=1e-7, max_iter=1000
    )
    theirs.fit(score[:, None])
    order = np.argsort(theirs.means_[:, 0])
    np.testing.assert_allclose(found.mean, theirs.means_[order, 0], atol=0.005)
    np.testing.assert_allclose(found.share, theirs.weights_[order], atol=0.005)
    assert found.std == pytest.approx(np.sqrt(theirs.covariances_[0, 0]), abs=0.005)
    grid = np.linspace(-1.0, 1.0, 50)
    expected = theirs.predict_proba(grid[:, None])[:, order[0]]
    np.testing.assert_allclose(found.low_probability(grid), expected, atol=0.02)


def test_what_is_one_kind_is_one():
    rng = np.random.default_rng(2)
    for score in (
        rng.normal(0.4, 0.1, 2000),
        rng.uniform(0, 1, 500),
        # Two that overlap are not two modes.
        np.concatenate([rng.normal(0.0, 0.2, 1000), rng.normal(0.2, 0.2, 1000)]),
        np.full(100, 0.3),
        np.array([-0.5, 0.5, 0.5]),
        np.full(5, np.nan),
        np.empty(0),
    ):
        assert fit_mixture(score) is None


def test_a_probability_never_rises_with_the_score():
    """With a wide low kind, too, whose density is the larger one again beyond the high kind."""
    score = two_kinds(np.random.default_rng(3), 200, 800, low_std=0.25, high_std=0.05)
    probability = fit_mixture(np.append(score, np.nan)).low_probability(np.linspace(-3, 3, 500))
    assert (np.diff(probability) <= 0).all()
    assert probability[0] > 0.99
    assert probability[-1] < 0.01
    # Numbers without an end are of the kind that is nearer, and no warning says otherwise.
    with np.errstate(all="raise"):
        ends = fit_mixture(score).low_probability(np.array([-np.inf, np.inf]))
    np.testing.assert_allclose(ends, [1.0, 0.0], atol=1e-12)
