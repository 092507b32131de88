"""The error of ρ² and the estimate that knows it, against draws from scipy and a plain writing.

Shapes: C classes, N images of a class, D embedding size.
"""

import numpy as np
import pytest
import torch
from scipy.stats import vonmises_fisher

from kappaface_dist.head.margins.resultant import (
    concentration,
    empirical_bayes,
    sampling_variance,
)

SIZE = 24


def estimates(kappa, num_images, num_classes, seed):
    """ρ² of so many classes of equal κ, by pairs."""
    law = vonmises_fisher(np.eye(SIZE)[0], kappa, seed=np.random.default_rng(seed))
    z_CND = law.rvs(num_classes * num_images).reshape(num_classes, num_images, SIZE)
    squares = np.square(z_CND.sum(axis=1)).sum(axis=1) - num_images
    return squares / (num_images * (num_images - 1))


@pytest.mark.parametrize("kappa", [5.0, 40.0])
@pytest.mark.parametrize("num_images", [2, 3, 10])
def test_sampling_variance_is_that_of_draws(kappa, num_images):
    found = estimates(kappa, num_images, 20_000, 0)
    squared = torch.tensor([found.mean()])
    expected = sampling_variance(squared, torch.tensor([float(num_images)]), SIZE).item()
    # The closed form takes κ by Banerjee's approximation: good to some per cent at D = 24.
    assert expected == pytest.approx(found.var(), rel=0.06)


def test_empirical_bayes_draws_small_classes_to_the_mean():
    """Classes of two kinds; a plain writing of the same formula, and a smaller error."""
    rng = np.random.default_rng(3)
    sizes = np.repeat([2, 3, 5, 20], 150)
    kappa = np.where(rng.random(len(sizes)) < 0.5, 12.0, 18.0)
    seen, truth = np.empty(len(sizes)), np.empty(len(sizes))
    for k in (12.0, 18.0):
        exact = estimates(k, 400, 200, 8).mean()
        for n in (2, 3, 5, 20):
            here = (sizes == n) & (kappa == k)
            seen[here] = estimates(k, n, int(here.sum()), [n, int(k)])
            truth[here] = exact
    sound = np.ones(len(sizes), bool)
    sound[::17] = False
    drawn = empirical_bayes(
        torch.from_numpy(seen), torch.from_numpy(sizes * 1.0), torch.from_numpy(sound), SIZE
    ).numpy()

    y, n = seen[sound], sizes[sound]
    v = sampling_variance(
        torch.tensor(y.mean()).expand(len(y)), torch.from_numpy(n * 1.0), SIZE
    ).numpy()
    w = 1 / v
    q = (w * (y - np.average(y, weights=w)) ** 2).sum()
    tau2 = max(0.0, (q - (len(y) - 1)) / (w.sum() - (w**2).sum() / w.sum()))
    m = np.average(y, weights=1 / (tau2 + v))
    np.testing.assert_allclose(drawn[sound], (tau2 * y + v * m) / (tau2 + v), rtol=1e-9)
    np.testing.assert_array_equal(drawn[~sound], seen[~sound])
    assert tau2 == pytest.approx(truth.var(), rel=0.5)
    for size in (2, 3, 5):
        here = sound & (sizes == size)
        assert np.square(drawn - truth)[here].mean() < 0.8 * np.square(seen - truth)[here].mean()


def test_equal_classes_get_one_value():
    """Nothing but error between them: what is left of the spread is 0, or next to it."""
    seen = torch.from_numpy(estimates(15.0, 4, 3000, 5))
    size = torch.full_like(seen, 4.0)
    drawn = empirical_bayes(seen, size, size > 0, SIZE)
    assert drawn.std() < 0.35 * seen.std()
    one = torch.tensor([0.5], dtype=torch.float64)
    assert empirical_bayes(one, one + 4, one > 0, SIZE).tolist() == pytest.approx([0.5])
    assert concentration(one.sqrt(), SIZE).item() == pytest.approx(0.5**0.5 * 23.5 / 0.5)
