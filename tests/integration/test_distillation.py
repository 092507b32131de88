"""A run with a teacher: resumed bitwise, its teacher kept to, its numbers told."""

import shutil

import pytest
import torch

from kappaface_dist.backbones import build_backbone
from kappaface_dist.config.file import load_config
from kappaface_dist.models.export import save_backbone
from kappaface_dist.training.build import build_job
from kappaface_dist.training.derived import derived_numbers
from kappaface_dist.training.metrics_file import read_metrics
from kappaface_dist.training.trainer import Trainer


def write_teacher(path, seed):
    torch.manual_seed(seed)
    network = build_backbone("tiny", embedding_size=32, image_size=32)
    save_backbone(path, network, name="tiny", embedding_size=32, image_size=32)
    return path


def fit(path, folder, teacher):
    """Train; every tensor that the run has in the end, and its job."""
    overrides = [f"run.folder={folder}", f"distill.model={teacher}"]
    config = load_config(path, overrides)
    config.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(build_job(config, torch.device("cpu")))
    trainer.fit()
    tensors = {**trainer.job.network.state_dict(), **trainer.job.head.sharded_state()}
    return {name: tensor.clone() for name, tensor in tensors.items()}, trainer.job


def test_a_run_with_a_teacher_goes_on_as_if_it_had_not_stopped(write_config, tmp_path):
    teacher = write_teacher(tmp_path / "a.safetensors", 1)
    path = write_config(
        run={"steps": 6},
        checkpoint={"every": 3},
        distill={"weight": 2.0},
        optimizer={"lr": 0.01, "accumulate": 2},
    )
    whole, job = fit(path, tmp_path / "whole", teacher)
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    taught = [line["distill_loss"] for line in lines if "distill_loss" in line]
    assert len(taught) == 6
    # A random teacher's cosines begin at about 0, and what is learnt raises them.
    assert 0.7 < taught[0] < 1.3
    assert taught[-1] < taught[0]
    described = derived_numbers(job)["teacher"]
    assert (described["backbone"], described["precision"]) == ("tiny", "fp32")

    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(max((tmp_path / "parts" / "checkpoints").iterdir()))
    # The same teacher in another place is the same problem, another is not.
    moved = shutil.copy(teacher, tmp_path / "moved.safetensors")
    resumed, _ = fit(path, tmp_path / "parts", moved)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0, equal_nan=True)
    other = write_teacher(tmp_path / "b.safetensors", 2)
    message = r"distill\.model was the weights \w{16} and is the weights \w{16}"
    with pytest.raises(ValueError, match=message):
        fit(path, tmp_path / "parts", other)
