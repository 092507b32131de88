"""Training from end to end, on real processes and real files."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.models.export import load_backbone, weights_digest
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import build_job
from kappaface_dist.training.metrics_file import read_metrics
from kappaface_dist.training.trainer import Trainer
from tests.commands import ENVIRONMENT, ROOT, torchrun, torchrun_command
from tests.processes import run_on_ranks


def fit(path, *overrides, stop_after=None):
    """Train in this process; returns (losses by step, everything a checkpoint holds)."""
    config = load_config(path, list(overrides))
    if parallel.rank() == 0:
        config.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(build_job(config, torch.device("cpu")))
    if stop_after is not None and parallel.rank() == parallel.world_size() - 1:
        # Only the last rank hears of it; all must stop after the same step.
        trainer.job.loader = StopsAfter(trainer.job.loader, stop_after)
    trainer.fit()
    job = trainer.job
    state = {f"head.{k}": v for k, v in job.head.sharded_state().items()}
    state |= {f"backbone.{k}": v for k, v in job.network.state_dict().items()}
    for i, (_, values) in enumerate(sorted(job.optimizer.state_dict()["state"].items())):
        state |= {f"optimizer.{i}.{k}": v for k, v in values.items() if v is not None}
    lines = read_metrics(config.folder / "metrics.jsonl")
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    return trainer.state.step, losses, {k: v.numpy().copy() for k, v in state.items()}


class StopsAfter:
    """A loader during whose batch number `num_batches` this process is sent SIGTERM."""

    def __init__(self, loader, num_batches):
        self._loader, self._num_batches = loader, num_batches

    def batches(self, position, num_steps):
        for number, batch in enumerate(self._loader.batches(position, num_steps)):
            if number == self._num_batches:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    def __getattr__(self, name):
        return getattr(self._loader, name)


@pytest.mark.parametrize(("optimizer", "num_ranks"), [("sgd", 1), ("adamw", 2), ("sgd", 3)])
def test_interrupted_and_uninterrupted_runs_end_bitwise_equal(
    write_config, tmp_path, optimizer, num_ranks
):
    path = write_config(head={"sample_rate": 0.5}, optimizer={"name": optimizer, "lr": 0.01})
    whole = run_on_ranks(num_ranks, fit, path, f"run.folder={tmp_path}/whole")

    def interrupted():
        return fit(path, f"run.folder={tmp_path}/parts", stop_after=13)

    first = run_on_ranks(num_ranks, interrupted)
    assert {step for step, *_ in first} <= {14, 15}
    assert len({step for step, *_ in first}) == 1
    second = run_on_ranks(num_ranks, fit, path, f"run.folder={tmp_path}/parts")
    assert second[0][1] == whole[0][1]
    for (_, _, expected), (step, _, found) in zip(whole, second, strict=True):
        assert step == 30
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_another_number_of_ranks_goes_on_with_the_same_loss_curve(write_config, tmp_path):
    """2 -> 3 -> 1 ranks at the same global batch; tiny_gn's steps do not depend on the ranks."""
    path = write_config(
        backbone={"name": "tiny_gn"},
        run={"steps": None, "epochs": 1.5},
        checkpoint={"keep": 10},
        data={"augment": "none"},
    )
    batch = {1: "data.batch_size=12", 2: "data.batch_size=6", 3: "data.batch_size=4"}
    _, whole, _ = run_on_ranks(1, fit, path, batch[1], f"run.folder={tmp_path}/whole")[0]

    def part(num_ranks, stop_after):
        folder = f"run.folder={tmp_path}/parts"
        return fit(path, batch[num_ranks], folder, stop_after=stop_after)

    losses = {}
    for num_ranks, stop_after in ((2, 8), (3, 9), (1, None)):
        results = run_on_ranks(num_ranks, part, num_ranks, stop_after)
        losses |= results[0][1]
    assert losses.keys() == whole.keys()
    assert len(losses) > 40
    # The sums of the head and of DDP are taken in another order: fp32 rounding, grown by training.
    steps = sorted(losses)
    np.testing.assert_allclose(
        [losses[step] for step in steps], [whole[step] for step in steps], rtol=2e-3
    )


def test_the_command_trains_reports_and_notices_that_it_is_done(write_config, faces, tmp_path):
    path = write_config(
        run={"steps": 60}, evaluate={"sets": {"unseen": str(faces / "unseen.bin")}, "every": 40}
    )
    first = torchrun(2, "launch/train.py", path, "log.tensorboard=true")
    assert first.returncode == 0, first.stderr
    assert "unseen" in first.stdout
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["world_size"], summary["steps"]) == (2, 60)
    assert summary["images_seen"] == 60 * 24
    assert summary["images_per_second"] > 0
    result = summary["verification"]["unseen"]
    assert 0.5 <= result["accuracy"] <= 1
    assert {"accuracy_std", "tar_at_far"} <= result.keys()
    assert summary["baselines"].keys() == {"untrained", "pixels"}
    for name in (
        "config.yaml",
        "train.log",
        "metrics.jsonl",
        "checkpoints/step_00000060/.metadata",
        "export/backbone.safetensors",
        "plots/loss.png",
        "plots/margins.png",
        "plots/concentrations.png",
        "plots/roc.png",
        "verification/report.html",
        "verification/plots/det.png",
    ):
        assert (folder / name).stat().st_size > 0, name
    page = folder / "verification" / "report.html"
    assert f"report on the verification sets: {page}" in first.stdout
    row = (folder / "verification" / "table.md").read_text().splitlines()[2]
    assert f"| {100 * result['accuracy']:.2f} ± {100 * result['accuracy_std']:.2f} |" in row
    assert f"| {100 * result['auc']:.2f} [" in row
    network = load_backbone(folder / "export" / "backbone.safetensors")[0]
    text = page.read_text()
    assert weights_digest(network) in text
    assert "steps: 60" in text
    assert list((folder / "tensorboard").glob("events*"))
    losses = [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    lines = read_metrics(folder / "metrics.jsonl")
    shares = [line["rank_1"] for line in lines if "loss" in line]
    assert len(shares) == len(losses)
    assert 0 <= np.mean(shares[:10]) < np.mean(shares[-10:]) <= 1
    assert "rank-1 " in (folder / "train.log").read_text()

    again = torchrun(2, "launch/train.py", path)
    assert again.returncode == 0, again.stderr
    assert "is finished" in again.stdout


def test_the_log_has_the_learning_rate_of_its_step(write_config, tmp_path):
    path = write_config(run={"steps": 6}, optimizer={"lr": 0.05, "warmup_epochs": 0.0})
    fit(path)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    found = [line["learning_rate"] for line in lines if "loss" in line]
    assert found == [0.05 * (1.0 - step / 6) ** 2 for step in range(6)]


def test_sigterm_saves_and_the_same_command_goes_on(write_config, tmp_path):
    path = write_config(run={"steps": 2000}, checkpoint={"every": None})
    command = torchrun_command(2, "launch/train.py", path)
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while len(read_metrics(metrics)) < 5:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert "to go on later" in log
    (saved,) = (tmp_path / "run" / "checkpoints").glob("*/.metadata")
    step = int(saved.parent.name.removeprefix("step_"))
    assert 5 <= step < 2000

    second = torchrun(2, "launch/train.py", path, f"run.steps={step + 3}")
    assert second.returncode == 0, second.stderr
    assert f"going on from {saved.parent}" in second.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == step + 3


@pytest.mark.long
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(write_config, precision):
    path = write_config(precision=precision, head={"dtype": "bf16"}, run={"steps": 40})
    (_, losses, _) = run_on_ranks(0, fit, path)[0]
    values = list(losses.values())
    assert np.mean(values[-5:]) < 0.95 * np.mean(values[:5])


def test_a_run_can_start_from_an_exported_backbone(write_config, tmp_path):
    path = write_config(run={"steps": 3})
    assert torchrun(1, "launch/train.py", path).returncode == 0
    exported = tmp_path / "run" / "export" / "backbone.safetensors"
    config = load_config(path, [f"backbone.init={exported}", f"run.folder={tmp_path}/second"])
    started = build_job(config, torch.device("cpu")).network.state_dict()
    trained = build_job(load_config(path), torch.device("cpu"))
    Trainer(trained)
    for name, tensor in trained.network.state_dict().items():
        torch.testing.assert_close(started[name], tensor, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"backbone\.init .* make them equal"):
        build_job(
            load_config(path, [f"backbone.init={exported}", "backbone.embedding_size=16"]),
            torch.device("cpu"),
        )
