"""A made-up job learns as the run does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.planning.made_up_job import made_up_head, made_up_job, random_batches
from kappaface_dist.planning.memory import JobSize, head_items
from kappaface_dist.training.build import build_learner
from kappaface_dist.training.step import train_step
from tests.apex_stand_in import install

CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(
        "run: {steps: 3}\n"
        "data: {train: nowhere.rec, batch_size: 4, image_size: 32}\n"
        "backbone: {name: tiny, embedding_size: 8}\n"
        "optimizer: {lr: 0.1, reference_batch: 8}\n"
    )
    return file


@pytest.mark.parametrize(("name", "kind"), [("sgd", "FusedSGD"), ("lamb", "FusedLAMB")])
def test_its_optimizer_is_the_one_that_is_asked_for(path, monkeypatch, name, kind):
    install(monkeypatch)
    overrides = [f"optimizer.name={name}", "optimizer.implementation=apex"]
    config = load_config(path, overrides)
    made_up = made_up_job(config, 6, CPU).optimizer
    of_run = build_learner(config, np.full(6, 50), CPU).optimizer
    assert type(made_up).__name__ == type(of_run).__name__ == kind
    # Of 4 images where the configuration's is for 8.
    assert {group["lr"] for group in [*made_up.param_groups, *of_run.param_groups]} == {0.05}


def test_it_takes_steps_without_a_dataset(path):
    config = load_config(path, ["optimizer.accumulate=2"])
    job = made_up_job(config, 6, CPU)
    batches = random_batches(config, 6, CPU)
    assert (len(batches), job.global_batch, job.head.num_classes) == (2, 8, 6)
    before = job.head.weight_KD.clone()
    assert train_step(job, batches, 0.1, 0).isfinite()
    assert not torch.equal(job.head.weight_KD, before)
    torch.testing.assert_close(made_up_head(config, 6, CPU).weight_KD, before, rtol=0, atol=0)


def test_a_schedule_of_sample_rates_is_followed_by_steps_and_planned_at_its_largest(path, caplog):
    """Rows that were not drawn do not change, so the changed ones are those in use."""
    caplog.set_level("INFO")
    schedule = "head.sample_rate=[[0, 0.1], [2, 0.5], [3, 1]]"
    config = load_config(path, [schedule, "optimizer.accumulate=2"])
    job = build_learner(config, np.full(100, 50), CPU)
    changed = []
    for epoch in (0, 1, 2, 3, 0):
        before = job.head.weight_KD.clone()
        train_step(job, random_batches(config, 100, CPU), 0.1, 0, epoch=epoch)
        changed.append(int((job.head.weight_KD != before).any(dim=1).sum()))
    # A tenth, a half of 100 classes, and one place more for each of the 8 images.
    assert changed == [18, 18, 58, 100, 18]
    assert [record.args for record in caplog.records] == [(2, 0.5), (3, 1.0), (0, 0.1)]
    assert made_up_head(config, 100, CPU).softmax.sample_rate == 1.0
    size = JobSize(num_classes=1000, num_images=10_000, num_ranks=1)
    plans = [
        head_items(load_config(path, [rates, "optimizer.accumulate=2"]), size, "cpu")
        for rates in (schedule, "head.sample_rate=1")
    ]
    assert plans[0] == plans[1]
