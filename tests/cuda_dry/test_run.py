"""A run on a GPU that is not here: the training loop, its log lines, its clock."""

import pytest
import torch

from kappaface_dist.planning.pretend_gpu import DEVICE, pretend_gpu
from kappaface_dist.training.build import build_job
from kappaface_dist.training.metrics_file import read_metrics
from kappaface_dist.training.trainer import Trainer
from tests.cuda_dry.conftest import TINY, configure
from tests.unit.data.made_records import write_records


class Event:
    """torch.cuda.Event, by what is asked of it."""

    def __init__(self, enable_timing):
        assert enable_timing
        self.recorded = False

    def record(self):
        self.recorded = True

    def elapsed_time(self, end):
        assert self.recorded
        assert end.recorded
        return 3.0


@pytest.mark.parametrize("several", [False, True])
def test_a_run_on_a_gpu(tmp_path, monkeypatch, several):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    asked = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda place: asked.append(place) or 1)
    record = write_records(tmp_path / "train.rec", [i % 5 for i in range(40)], size=32)
    train, overrides = record, []
    if several:
        train = f"{{a: {{path: {record}, share: 0.5}}, b: {{path: {record}, share: 0.5}}}}"
        overrides = ["precision=fp16", "optimizer.accumulate=2"]
    config = configure(
        *TINY,
        f"data.train={train}",
        f"run.folder={tmp_path / 'run'}",
        *("run.epochs=null", "run.steps=3", "log.every=1", "log.tensorboard=false"),
        *("checkpoint.every=null", "evaluate.sets={}", "evaluate.every=null"),
        *overrides,
    )
    config.folder.mkdir()
    with pretend_gpu() as gpu:
        gpu.value = -1.0  # no loss was bad
        trainer = Trainer(build_job(config, DEVICE))
        monkeypatch.setattr(trainer, "save", lambda *_: None)  # fake tensors hold nothing to write
        assert trainer.fit()
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert asked == [DEVICE] * 3
    assert {"memory_bytes", "data_wait_share", "margin_mean"} <= lines[0].keys()
    assert ("loss/b" in lines[0]) == several
