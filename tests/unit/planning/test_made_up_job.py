"""A made-up job learns as the run does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.planning.made_up_job import made_up_head, made_up_job, random_batches
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
