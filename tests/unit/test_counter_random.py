"""Random numbers as functions of their place."""

import numpy as np
import torch
from scipy import stats

from kappaface_dist.counter_random import mix64, normal, uniform


def test_seeds_of_neighbours_are_distinct_and_in_range():
    seeds = {mix64(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(seeds) == 8000
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert mix64(1, 2) != mix64(2, 1)


def test_numbers_are_uniform_and_independent_of_their_neighbours():
    counters = np.arange(100_000)
    first, second = uniform(1, 0, counters), uniform(1, 1, counters)
    for numbers in (first, second):
        assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    # Standard error of a correlation of 100,000 numbers: 0.003.
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.015
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.015
    np.testing.assert_array_equal(uniform(1, 0, counters[50:60]), first[50:60])


def test_normal_numbers_are_the_quantiles_of_the_uniform_ones():
    counters = np.r_[np.arange(1000), np.arange(1000) + (7 << 32)]
    for seed in (0, 3, 2**64 - 1):
        expected = stats.norm.ppf(uniform(seed, 0, counters))
        found = normal(seed, torch.from_numpy(counters)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert np.isfinite(normal(1, torch.arange(100_000)).numpy()).all()
