"""The arithmetic of a comparison against scipy."""

import math

import numpy as np
import pytest
import scipy.stats

from kappaface_dist.margin_study.intervals import compare, mean_interval, t_quantile, verdict


@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 30, 500])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.975, 0.995])
def test_quantile(degrees, probability):
    expected = scipy.stats.t.ppf(probability, degrees)
    # Summed on a grid of 200 000 angles.
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_interval_is_that_of_the_t_test():
    values = [0.71, 0.74, 0.69, 0.75, 0.7]
    found = mean_interval(values)
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(values), scipy.stats.sem(values))
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["interval"] == pytest.approx([low, high], rel=1e-6)
    assert mean_interval([0.7]) == {"mean": 0.7, "interval": None}


def arms(shift):
    rng = np.random.default_rng(3)
    # Seeds differ far more than arms do: only pairing can see the shift.
    seed = rng.normal(0.8, 0.05, 8)
    noise = rng.normal(0, 0.002, (2, 8))
    return {
        "arcface": {"all": seed.tolist(), "small": (seed - 0.1).tolist()},
        "kappaface": {
            "all": (seed + shift + noise[0]).tolist(),
            "small": (seed - 0.1 + noise[1]).tolist(),
        },
    }


def test_what_holds_for_all_arms_together():
    """Against scipy: t intervals at 1 − 0.05 / 3, and the power of the test they make."""
    values = arms(0.004)
    rng = np.random.default_rng(5)
    for name in ("second", "third"):
        noise = rng.normal(0, 0.002, 8)
        values[name] = {key: (np.array(v) + noise).tolist() for key, v in values["arcface"].items()}
    found = compare(values)["kappaface"]
    difference = np.subtract(values["kappaface"]["all"], values["arcface"]["all"])
    level = 1 - 0.05 / 3
    low, high = scipy.stats.t.interval(level, 7, difference.mean(), scipy.stats.sem(difference))
    assert found["corrected"] == pytest.approx([low, high], rel=1e-6)
    assert found["corrected"][0] < found["interval"][0]
    # Seeds whose true difference is the detectable one, with the spread that was seen.
    draws = rng.normal(found["detectable"], difference.std(ddof=1), (20_000, 8))
    half = scipy.stats.t.ppf((1 + level) / 2, 7) * scipy.stats.sem(draws, axis=1)
    assert np.mean(draws.mean(axis=1) > half) == pytest.approx(0.8, abs=0.03)
    one = compare({name: {k: v[:1] for k, v in arm.items()} for name, arm in values.items()})
    assert one["second"]["small"]["corrected"] is one["second"]["detectable"] is None
    text = verdict(compare(values))
    assert "corrected for 3 arm(s)" in text


def test_differences_are_paired_by_seed():
    values = arms(0.01)
    found = compare(values)
    assert list(found) == ["kappaface"]
    expected = scipy.stats.ttest_rel(values["kappaface"]["all"], values["arcface"]["all"])
    low, high = expected.confidence_interval(0.95)
    assert found["kappaface"]["interval"] == pytest.approx([low, high], rel=1e-6)
    assert low > 0
    unpaired = scipy.stats.ttest_ind(values["kappaface"]["all"], values["arcface"]["all"])
    assert unpaired.confidence_interval(0.95).low < 0
    turned = compare(values, "kappaface")["arcface"]
    assert turned["interval"] == pytest.approx([-high, -low], rel=1e-6)
    small = scipy.stats.ttest_rel(values["kappaface"]["small"], values["arcface"]["small"])
    assert found["kappaface"]["small"]["interval"] == pytest.approx(
        list(small.confidence_interval(0.95)), rel=1e-6
    )


def test_verdict_says_what_can_be_told_apart():
    assert "kappaface +1.0" in verdict(compare(arms(0.01)))
    assert "(small)" not in verdict(compare(arms(0.01)))
    assert verdict(compare(arms(0.0))).startswith("no arm can be told from arcface")
    one_seed = {name: {k: v[:1] for k, v in values.items()} for name, values in arms(0.1).items()}
    assert "one seed" in verdict(compare(one_seed))


def test_quantile_of_the_normal_in_the_limit():
    assert t_quantile(0.975, 100_000) == pytest.approx(1.96, abs=1e-3)
    assert math.isfinite(t_quantile(0.9999, 1))
