"""Arms of several seeds, against scipy's paired test."""

import copy

import numpy as np
import pytest
from scipy import stats

from kappaface_dist.margin_study.runs_by_seed import compare_runs, seeds_table

ACCURACY = {"a": (0.91, 0.92, 0.90, 0.93), "b": (0.93, 0.93, 0.94, 0.94)}


@pytest.fixture
def runs():
    return {
        f"runs/{arm}_{seed}": {
            "settings": {
                "run.name": f"{arm}_{seed}",
                "run.folder": None,
                "run.seed": seed,
                "optimizer.lr": {"a": 0.1, "b": 0.2}[arm],
            },
            "state": "finished",
            "last": {"accuracy/lfw": accuracy},
        }
        for arm, accuracies in ACCURACY.items()
        for seed, accuracy in enumerate(accuracies)
    }


def test_differences_are_those_of_a_paired_test(runs):
    report = compare_runs(runs, "runs/a_2")
    assert list(report["arms"]) == ["runs/a_0", "runs/b_0"]
    found = report["arms"]["runs/b_0"]["sets"]["accuracy/lfw"]
    test = stats.ttest_rel(ACCURACY["b"], ACCURACY["a"])
    wanted = test.confidence_interval(0.95)
    assert found["difference"]["interval"] == pytest.approx([wanted.low, wanted.high], rel=1e-6)
    assert found["mean"] == pytest.approx(np.mean(ACCURACY["b"]))
    text = seeds_table(report, "runs/a_2")
    assert "runs/b_0 and its other seeds: 4 seed(s)" in text
    assert f"+2.00 ± {50 * (wanted.high - wanted.low):.2f} [±" in text


def test_seeds_without_a_partner_and_unfinished_runs_are_said(runs):
    runs["runs/b_3"]["state"] = "stopped"
    del runs["runs/a_0"]
    report = compare_runs(runs, "runs/a_1")
    arm = report["arms"]["runs/b_0"]
    assert (arm["seeds"], arm["shared_seeds"]) == ([0, 1, 2], [1, 2])
    difference = arm["sets"]["accuracy/lfw"]["difference"]
    assert difference["mean"] == pytest.approx((0.01 + 0.04) / 2)
    text = seeds_table(report, "runs/a_1")
    assert "1 of them have no partner among those of runs/a_1: left out" in text
    assert text.endswith("not finished, left out: runs/b_3")


def test_one_seed_has_no_interval(runs):
    two = {name: runs[name] for name in ("runs/a_0", "runs/b_0")}
    report = compare_runs(two, "runs/a_0")
    assert report["arms"]["runs/b_0"]["sets"]["accuracy/lfw"]["difference"]["interval"] is None
    assert "+2.00 [one seed]" in seeds_table(report, "runs/a_0")


def test_what_cannot_be_compared_is_refused(runs):
    with pytest.raises(ValueError, match=r"--against is runs/c_0, which is none of runs/a_0"):
        compare_runs(runs, "runs/c_0")
    alone = {name: run for name, run in runs.items() if "/a_" in name}
    with pytest.raises(ValueError, match="all finished runs have the settings of runs/a_0"):
        compare_runs(alone, "runs/a_0")
    twice = {**runs, "runs/again": copy.deepcopy(runs["runs/a_3"])}
    with pytest.raises(ValueError, match="runs/a_3 and runs/again have the same settings and the"):
        compare_runs(twice, "runs/a_0")
    runs["runs/a_0"]["state"] = "not finished"
    with pytest.raises(ValueError, match="runs/a_0, a run that is not finished"):
        compare_runs(runs, "runs/a_0")
