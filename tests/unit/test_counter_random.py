"""Random numbers as functions of their place."""

import numpy as np
from scipy import stats

from kappaface_dist.counter_random import mix64, uniform


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
