"""The rank that holds up the others is named, whatever holds it up."""

import time

import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training import pace
from kappaface_dist.training.build import build_job
from kappaface_dist.training.metrics_file import read_metrics
from kappaface_dist.training.run_log import start_logging
from kappaface_dist.training.trainer import Trainer
from tests.processes import run_on_ranks

SLOW, DELAY = 1, 1.0  # far more than the steps of a tiny network, on a crowded machine too


class SlowDisk:
    """A loader whose batches come late."""

    def __init__(self, loader):
        self._loader = loader

    def batches(self, *args):
        for batch in self._loader.batches(*args):
            time.sleep(DELAY)
            yield batch

    def __getattr__(self, name):
        return getattr(self._loader, name)


def run_with_a_slow_rank(path, kind):
    config = load_config(path)
    parallel.agree(lambda: start_logging(config.folder if parallel.rank() == 0 else None))
    trainer = Trainer(build_job(config, torch.device("cpu")))
    if parallel.rank() == SLOW:
        if kind == "disk":
            trainer.job.loader = SlowDisk(trainer.job.loader)
        elif kind == "forward pass":
            trainer.job.network.register_forward_pre_hook(lambda *_: time.sleep(DELAY))
        else:
            step = trainer.job.optimizer.step
            trainer.job.optimizer.step = lambda *a, **k: (time.sleep(DELAY), step(*a, **k))[1]
    trainer.fit()


@pytest.mark.parametrize(("kind", "num_ranks"), [("disk", 2), ("forward pass", 3), ("update", 2)])
def test_a_slow_rank_is_named_in_each_line_and_warned_of_once(
    write_config, tmp_path, monkeypatch, kind, num_ranks
):
    monkeypatch.setattr(pace, "LONG", 3)
    path = write_config(run={"steps": 5}, checkpoint={"every": None}, data={"batch_size": 4})
    run_on_ranks(num_ranks, run_with_a_slow_rank, path, kind)
    lines = [one for one in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in one]
    # In the second step DDP lays out its buckets anew, in its forward pass, and waits there once.
    assert [line["slowest_rank"] for line in lines if line["step"] != 2] == [SLOW] * 4
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("  slowest rank 1 (+") >= 4
    assert log.count("WARNING rank 1 has been the slowest in 3 log lines in a row") == 1
