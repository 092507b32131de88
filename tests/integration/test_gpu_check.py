"""tools/gpu_check.py, as far as a CPU can stand for the GPU: it agrees with itself."""

import json
import time
from pathlib import Path

import pytest
import torch

from kappaface_dist.head import SGDRows
from kappaface_dist.head.margins.build import MARGINS
from kappaface_dist.planning import gpu_check, gpu_head, gpu_ranks, gpu_speed
from tests.commands import exit_line, python

TOOL = "tools/gpu_check.py"


@pytest.mark.long
def test_every_check_passes_on_the_cpu(tmp_path):
    done = python(TOOL, "--device", "cpu", "--quick", "--json", tmp_path / "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    names = {*gpu_head.HEADS, *gpu_check.CHECKS, *gpu_ranks.RANKS, *gpu_speed.SPEEDS}
    assert report["checks"].keys() == names
    assert all(verdict["passed"] for verdict in report["checks"].values())
    assert done.stdout.count("good  ") == len(names)
    assert report["checks"]["head's speed"]["picoseconds_per_logit"] > 0


def machine(folder):
    return gpu_check.Machine(torch.device("cpu"), Path(folder), True)


def test_a_wrong_update_is_found(tmp_path, monkeypatch):
    """In fp32 alone, by a twentieth: float64, the oracle, is right."""
    update = SGDRows.update

    def wrong(self, weight_RD, gradient_RD, state, lr):
        update(self, weight_RD, gradient_RD, state, lr * (1.05 if weight_RD.itemsize == 4 else 1.0))

    monkeypatch.setattr(SGDRows, "update", wrong)
    words = r"arcface: the centres' change is off by 0\.05"
    with pytest.raises(gpu_check.Failed, match=words) as bad:
        gpu_head.check_head(machine(tmp_path), "fp32")
    # All of them are said, and what is right is not.
    assert str(bad.value).count("the centres' change") == len(MARGINS)
    assert "the loss" not in str(bad.value)
    assert bad.value.figures["off"].keys() == MARGINS.keys()


CPU_LOSSES = [3.0] * 8 + [2.5] * 4 + [2.0] * 8


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([3.0, 3.3] + [3.0] * 6 + [2.5] * 4 + [2.0] * 8, "by 0.1 at most in the first 4"),
        ([3.0] * 8 + [2.5] * 4 + [2.4] * 8, "by 0.2 in the mean of the last"),
        ([float("nan")] * 20, "allowed are"),
    ],
)
def test_wrong_losses_are_found(losses, words, tmp_path, monkeypatch):
    found = iter([CPU_LOSSES, losses])
    monkeypatch.setattr(gpu_check, "train", lambda *_: next(found))
    monkeypatch.setattr(gpu_check.Machine, "config", lambda *_, **__: None)
    with pytest.raises(gpu_check.Failed, match=words):
        gpu_check.check_training(machine(tmp_path))


def test_losses_that_part_in_between_are_no_fault(tmp_path, monkeypatch):
    found = iter([CPU_LOSSES, [3.0] * 4 + [3.3] * 4 + [2.9] * 4 + [2.1] * 8])
    monkeypatch.setattr(gpu_check, "train", lambda *_: next(found))
    monkeypatch.setattr(gpu_check.Machine, "config", lambda *_, **__: None)
    _, figures = gpu_check.check_training(machine(tmp_path))
    assert figures["last_off"] == pytest.approx(0.05)


def only(monkeypatch, checks):
    monkeypatch.setattr(gpu_head, "HEADS", {})
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    monkeypatch.setattr(gpu_ranks, "RANKS", {})
    monkeypatch.setattr(gpu_speed, "HEAD_SPEEDS", {})
    monkeypatch.setattr(gpu_speed, "SPEEDS", {})


def test_one_failing_check_is_said_at_the_end_and_the_others_run(monkeypatch, capsys):
    def bad(_):
        raise RuntimeError("no such thing\n  here")

    only(monkeypatch, {"one": bad, "two": lambda _: ("fine", {})})
    assert exit_line(TOOL, "--device", "cpu") == "error: 1 of 2 checks failed: one"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("BAD   one")
    assert "no such thing here" in lines[0]
    assert lines[1].startswith("good  two")


def test_the_figures_of_a_run_that_is_cut_off_are_there(monkeypatch, tmp_path):
    def bad(_):
        raise gpu_check.Failed("too slow", {"speed": 3})

    def cut_off(_):
        raise KeyboardInterrupt

    only(monkeypatch, {"one": bad, "two": cut_off, "three": lambda _: ("fine", {})})
    path = tmp_path / "report.json"
    assert exit_line(TOOL, "--device", "cpu", "--json", path) == 130
    (one,) = json.loads(path.read_text())["checks"].values()
    assert (one["passed"], one["words"], one["speed"]) == (False, "too slow", 3)
    assert 'Failed("too slow"' in one["traceback"]


def speed(monkeypatch, tmp_path, minutes, outcomes):
    """`network_speed` on a GPU that is not here, with these outcomes of its runs in their order."""
    asked = []

    def images_per_second(_, name, compiled):
        asked.append((name, compiled))
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(gpu_speed, "images_per_second", images_per_second)
    monkeypatch.setattr(gpu_speed, "forget", lambda _: None)
    deadline = time.monotonic() + 60 * minutes
    gpu = gpu_check.Machine(torch.device("cuda"), tmp_path, False, deadline)
    try:
        words, figures = gpu_speed.network_speed(gpu)
    except gpu_check.Failed as error:
        words, figures = str(error), error.figures
    return words, figures, asked


def test_compilations_for_which_there_is_no_time_are_named(monkeypatch, tmp_path):
    words, figures, asked = speed(monkeypatch, tmp_path, 0.5, [100.0, 50.0])
    assert asked == [("r50", False), ("r100", False)]
    assert "r50 eager 100, r100 eager 50; left out: r50 compiled (would take longer" in words
    assert len(figures["left_out"]) == 4


def test_a_network_that_fails_or_does_not_fit_hides_no_other(monkeypatch, tmp_path):
    outcomes = [100.0, torch.OutOfMemoryError("no"), ValueError("no compiler"), 120.0, 60.0, 70.0]
    words, figures, asked = speed(monkeypatch, tmp_path, 5, outcomes)
    assert len(asked) == 6
    assert words.startswith("r50 compiled: no compiler; images per second: r50 eager 100,")
    assert figures["left_out"] == ["r100 eager (does not fit)"]
    assert list(figures["images_per_second"].values()) == [100.0, 120.0, 60.0, 70.0]
    (where,) = figures["tracebacks"].values()
    assert where.endswith("ValueError: no compiler\n")
    assert "in images_per_second" in where
