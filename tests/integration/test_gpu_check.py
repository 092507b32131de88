"""tools/gpu_check.py, as far as a CPU can stand for the GPU: it agrees with itself."""

import json
from pathlib import Path

import pytest
import torch

from kappaface_dist.head import SGDRows
from kappaface_dist.planning import gpu_check, gpu_ranks, gpu_speed
from tests.commands import exit_line, python

TOOL = "tools/gpu_check.py"


@pytest.mark.long
def test_every_check_passes_on_the_cpu(tmp_path):
    done = python(TOOL, "--device", "cpu", "--quick", "--json", tmp_path / "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    names = {*gpu_check.CHECKS, *gpu_ranks.RANKS, *gpu_speed.SPEEDS}
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
    with pytest.raises(AssertionError, match=r"in fp32: the centres' change is off by 0\.05"):
        gpu_check.check_head(machine(tmp_path))


def test_wrong_losses_are_found(tmp_path, monkeypatch):
    losses = iter([[3.0, 2.0], [3.0, 2.2]])
    monkeypatch.setattr(gpu_check, "train", lambda *_: next(losses))
    monkeypatch.setattr(gpu_check.Machine, "config", lambda *_, **__: None)
    with pytest.raises(AssertionError, match=r"10\.0% apart, allowed are 3%"):
        gpu_check.check_training(machine(tmp_path))


def test_one_failing_check_is_said_at_the_end_and_the_others_run(monkeypatch, capsys):
    def bad(_):
        raise RuntimeError("no such thing\n  here")

    monkeypatch.setattr(gpu_check, "CHECKS", {"one": bad, "two": lambda _: ("fine", {})})
    monkeypatch.setattr(gpu_ranks, "RANKS", {})
    monkeypatch.setattr(gpu_speed, "SPEEDS", {})
    assert exit_line(TOOL, "--device", "cpu") == "error: 1 of 2 checks failed: one"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("BAD   one")
    assert "no such thing here" in lines[0]
    assert lines[1].startswith("good  two")


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("tpu", "--device is 'tpu': use cuda, cuda:1 or cpu"),
        ("meta", "--device is meta: use cuda, cuda:1 or cpu"),
        pytest.param(
            "cuda:7",
            "--device is cuda:7, but torch sees 0 GPUs",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
    ],
)
def test_a_device_that_is_not_there(device, words):
    assert words in exit_line(TOOL, "--device", device)
