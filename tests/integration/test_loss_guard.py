"""The cause of a non-finite loss is that of its step, also where it is looked at some steps later.

That is how it is on a GPU; here the guard is told to, on one and two processes.
"""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from kappaface_dist.config.file import load_config
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import build_job
from kappaface_dist.training.loss_guard import LossGuard
from kappaface_dist.training.profiling import HOST_SYNCS
from kappaface_dist.training.trainer import Trainer
from tests.processes import run_on_ranks

CPU = torch.device("cpu")
BAD_STEP = 3


def image(job, batch):
    batch.image_B3HW[5, 1, 7, 7] = torch.nan


def label(job, batch):
    batch.label_B[3] = 30


def weight(job, batch):
    job.network.layer3[0].conv1.weight[0, 0, 0, 0] = torch.inf


def activation(job, batch):
    job.network.conv1.weight.fill_(3e38)


def half_precision(job, batch):
    job.network.conv1.weight.mul_(1e8)


def centre(job, batch):
    job.head.weight_KD[4] = torch.nan


def logit(job, batch):
    job.head.class_margins.state["hardness"].fill_(1e30)  # raises the logits of hard negatives


CAUSES = {
    image: "input: image 5 of the batch of rank {last} is not finite",
    label: "label: image 3 of the batch of rank {last} has label 30, but the head has 30 classes",
    weight: "learning rate: backbone {first_weight} of rank {last} is not finite any more; the",
    activation: "learning rate: image 0 of the batch of rank {last} has an embedding that is not"
    " finite though the weights are finite; the learning rate (0.0405) may be too high",
    half_precision: "precision: image 0 of the batch of rank {last} has an embedding that is not",
    centre: "learning rate: the class centres of rank {centres} is not finite any more; the",
    logit: "scale: embeddings, centres and labels are sound; the logits overflow: margin.scale is",
}


class Spoils:
    """A loader that spoils something of the last rank before one step."""

    def __init__(self, job, spoil):
        self._loader, self._job, self._spoil = job.loader, job, spoil

    def batches(self, position, num_steps):
        first = position // self._job.global_batch
        accumulate = self._job.config.optimizer.accumulate
        for number, batch in enumerate(self._loader.batches(position, num_steps)):
            copy = Batch(*(None if part is None else part.clone() for part in batch))
            is_last = parallel.rank() == parallel.world_size() - 1
            # Of several micro-batches the last.
            if is_last and number + 1 == (BAD_STEP + 1 - first) * accumulate:
                with torch.no_grad():
                    self._spoil(self._job, copy)
            yield copy

    def __getattr__(self, name):
        return getattr(self._loader, name)


def error_of(path, overrides, spoil, late):
    config = load_config(path, overrides)
    if parallel.rank() == 0:
        config.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(build_job(config, CPU))
    trainer.guard = LossGuard(trainer.job, late=late)
    trainer.job.head.refuses_labels = False  # as on a GPU
    trainer.job.loader = Spoils(trainer.job, spoil)
    with pytest.raises(ValueError, match="is not finite") as raised:
        trainer.fit()
    assert trainer.state.step == (6 if late else BAD_STEP)
    return str(raised.value)


@pytest.mark.parametrize("late", [True, False], ids=["late", "at_once"])
@pytest.mark.parametrize("num_ranks", [0, 2])
@pytest.mark.parametrize("spoil", CAUSES, ids=lambda spoil: spoil.__name__)
def test_the_cause_is_that_of_the_first_bad_step(write_config, spoil, num_ranks, late):
    path = write_config(log={"every": 6}, run={"steps": 30}, checkpoint={"every": None})
    overrides = ["precision=fp16"] if spoil is half_precision else []
    if spoil is logit:
        overrides = ["margin={name: curricularface, scale: 16}"]
    errors = run_on_ranks(num_ranks, error_of, path, overrides, spoil, late)
    assert len(set(errors)) == 1
    last = max(num_ranks - 1, 0)
    # Which of the spoilt tensors was the first is not kept: late, all are.
    names = {"first_weight": "conv1.weight" if late else "layer3.0.conv1.weight"}
    cause = CAUSES[spoil].format(last=last, centres=0 if late else last, **names)
    assert errors[0].startswith(f"the loss of step {BAD_STEP} is not finite: {cause}")


@pytest.mark.parametrize("cached", ["true", "false"])
@pytest.mark.parametrize("late", [True, False], ids=["late", "at_once"])
def test_an_image_of_a_micro_batch_is_counted_through_its_step(write_config, cached, late):
    path = write_config(log={"every": 6}, checkpoint={"every": None}, data={"batch_size": 6})
    overrides = ["optimizer.accumulate=2", f"optimizer.cache_embeddings={cached}"]
    error = error_of(path, overrides, image, late)
    assert "step 3 is not finite: input: image 11 of the batch of rank 0 is not finite" in error


def recovered(path):
    config = load_config(path)
    trainer = Trainer(build_job(config, CPU))
    trainer.guard = LossGuard(trainer.job, late=True)
    trainer.job.loader = Spoils(trainer.job, image)
    trainer.fit()
    return trainer.state


def test_a_late_look_costs_one_step_and_no_more(write_config, tmp_path):
    (tmp_path / "run").mkdir()
    path = write_config(log={"every": 6}, run={"steps": 12}, checkpoint={"every": 2})
    state = recovered(path)
    assert (state.step, state.skipped) == (12, [BAD_STEP * 12])
    assert np.isfinite(state.last_loss)


def test_watching_late_never_waits_for_the_device(write_config):
    job = build_job(load_config(write_config()), CPU)
    batch = next(iter(job.loader.batches(0, 1)))
    job.loader.close()
    loss = job.head(job.network(batch.image_B3HW), batch.label_B)
    waits = {}
    for late in (True, False):
        guard = LossGuard(job, late=late)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            guard.watch(loss, 0, [batch])
        waits[late] = {event.key for event in profiled.key_averages()} & {*HOST_SYNCS, "aten::item"}
    assert not waits[True]
    assert waits[False]  # such a wait does show
