"""Runs beside each other."""

import json

import pytest

from kappaface_dist.training.run_table import differing, find_runs, read_run, run_table


@pytest.fixture
def runs(tmp_path):
    for name, lr, accuracy in (("a", 0.1, (0.9, 0.8)), ("b", 0.2, (0.95,))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(
            f"run: {{name: {name}, steps: 10}}\noptimizer: {{lr: {lr}}}\ndata: {{train: x}}\n"
        )
        lines = [{"step": 10, "loss": 2.5, "images_per_second": 1234.0}]
        lines += [{"step": 10 + i, "accuracy/unseen": x} for i, x in enumerate(accuracy)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    summary = {"images_seen": 7200, "images_per_second": 2.0}
    rest = dict.fromkeys(
        ("world_size", "steps", "loss", "classes", "images", "verification", "baselines"), 0
    )
    (tmp_path / "a" / "summary.json").write_text(json.dumps(summary | rest))
    (tmp_path / "b" / "stopped.json").write_text("{}")
    return tmp_path


def test_the_table_has_what_differs_and_the_best(runs):
    found = {path.name: read_run(path) for path in find_runs([runs])}
    assert differing(found) == ["optimizer.lr"]
    head, first, second = run_table(found).splitlines()
    assert head.split() == (
        ["run", "optimizer.lr", "state", "step", "loss", "accuracy/unseen", "images/s", "hours"]
    )
    assert first.split() == ["a", "0.1", "finished", "11", "2.500", "90.00%", "1,234", "1.00"]
    assert second.split() == ["b", "0.2", "stopped", "10", "2.500", "95.00%", "1,234", "-"]


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {steps: 10}\ndata: {train: x}\n")
    found = {"new": read_run(tmp_path)}
    assert run_table(found).splitlines()[1].split() == ["new", "not", "finished", "0", *"---"]


def test_one_run_may_be_named_twice(runs):
    assert find_runs([runs / "a", runs / "a", runs]) == [runs / "a", runs / "b"]


def test_no_run_is_said(tmp_path):
    with pytest.raises(ValueError, match="there is no run in"):
        find_runs([tmp_path])
