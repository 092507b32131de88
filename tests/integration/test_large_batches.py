"""Micro-batches, accumulated or with cached embeddings, are the large batch."""

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import build_job
from kappaface_dist.training.metrics_file import read_metrics
from kappaface_dist.training.step import train_step
from kappaface_dist.training.trainer import Trainer
from tests.processes import run_on_ranks

CPU = torch.device("cpu")
CACHED = ("optimizer.accumulate=3", "optimizer.cache_embeddings=true", "data.batch_size=4")
ACCUMULATED = ("optimizer.accumulate=3", "data.batch_size=4")
WHOLE = ("data.batch_size=12",)


def steps(path, *overrides, num_steps=1):
    """(loss of the last step, weights, buffers, centres, momenta) after a few steps, as numpy."""
    config = load_config(path, list(overrides))
    job = build_job(config, CPU)
    size = config.optimizer.accumulate
    batches = iter(job.loader.batches(0, num_steps * size))
    for step in range(num_steps):
        micro_batches = [next(batches) for _ in range(size)]
        loss = train_step(job, micro_batches, 0.05, step * job.global_batch)
    state = dict(job.network.state_dict()) | job.head.sharded_state()
    for number, values in enumerate(job.optimizer.state_dict()["state"].values()):
        state[f"momentum.{number}"] = values["momentum_buffer"]
    job.loader.close()
    return loss.item(), {name: value.numpy().copy() for name, value in state.items()}


def assert_equal_but_for_rounding(found, expected):
    """Sums of fp32 in another order, through a network whose gradients cancel: 1e-4 of the largest.

    A micro-batch left out, or counted as the sum instead of the mean, is off by more than 0.1.
    """
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        limit = 1e-4 * max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize("num_ranks", [0, 2])
@pytest.mark.parametrize("micro", [ACCUMULATED, CACHED], ids=["accumulated", "cached"])
def test_micro_batches_are_the_large_batch(write_config, num_ranks, micro):
    """tiny_gn normalises each image by itself: nothing else may depend on the batch's parts."""
    path = write_config(
        backbone={"name": "tiny_gn"}, data={"augment": "none"}, margin={"name": "arcface"}
    )
    for expected, found in zip(
        run_on_ranks(num_ranks, steps, path, *WHOLE),
        run_on_ranks(num_ranks, steps, path, *micro),
        strict=True,
    ):
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        assert_equal_but_for_rounding(found[1], expected[1])


@pytest.mark.parametrize("num_ranks", [0, 2])
def test_gradients_of_cuda_graphs_add_up_in_memory_of_their_own(
    write_config, monkeypatch, num_ranks
):
    """torch tells to have it ready before: a replay would overwrite what it has taken itself."""
    path = write_config(
        backbone={"name": "tiny_gn"}, data={"augment": "none"}, margin={"name": "arcface"}
    )
    expected = run_on_ranks(num_ranks, steps, path, *ACCUMULATED)[0]
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)  # it would take a minute
    graphs = (*ACCUMULATED, "backbone.compile=reduce-overhead")
    found = run_on_ranks(num_ranks, steps, path, *graphs)[0]
    assert_equal_but_for_rounding(found[1], expected[1])

    job = build_job(load_config(path, list(graphs)), CPU)
    batches = list(job.loader.batches(0, 3))
    trained = [p for p in job.network.parameters() if p.requires_grad]
    before = []
    train_step(job, batches, 0.05, 0, check=lambda *_: before.append([id(p.grad) for p in trained]))
    job.loader.close()
    assert before[0] == [id(p.grad) for p in trained]
    assert all(p.grad.abs().sum() > 0 for p in trained)


def test_cached_embeddings_see_the_same_network_twice(write_config):
    """BatchNorm's statistics count every image once, and dropping repeats itself."""
    path = write_config(backbone={"drop_path": 0.4, "dropout": 0.2})
    accumulated, cached = (steps(path, *micro) for micro in (ACCUMULATED, CACHED))
    assert_equal_but_for_rounding(cached[1], accumulated[1])
    assert accumulated[1]["bn1.num_batches_tracked"] == 3


def fit(path, *overrides):
    config = load_config(path, list(overrides))
    if parallel.rank() == 0:
        config.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(build_job(config, CPU))
    trainer.fit()
    lines = read_metrics(config.folder / "metrics.jsonl")
    return trainer.state, [line for line in lines if "loss" in line]


def test_the_schedule_and_the_data_follow_the_large_batch(write_config, tmp_path):
    """A whole run: steps, epochs and learning rates are those of the large batch."""
    path = write_config(
        backbone={"name": "tiny_gn"},
        run={"steps": None, "epochs": 0.2},
        data={"augment": "none"},
        optimizer={"warmup_epochs": 0.05, "reference_batch": 12},
    )
    state, expected = fit(path, *WHOLE, f"run.folder={tmp_path}/whole")
    micro_state, found = fit(path, *ACCUMULATED, f"run.folder={tmp_path}/micro")
    assert (micro_state.step, micro_state.position) == (state.step, state.position)
    assert state.step > 5
    for key in ("step", "epoch", "learning_rate"):
        assert [line[key] for line in found] == [line[key] for line in expected]
    # Rounding, grown by training.
    np.testing.assert_allclose(
        [line["loss"] for line in found], [line["loss"] for line in expected], rtol=1e-3
    )


def test_resuming_repeats_what_the_backbone_drops(write_config, tmp_path):
    path = write_config(
        backbone={"drop_path": 0.4}, run={"steps": 8}, checkpoint={"every": 4, "keep": 2}
    )
    _, whole = fit(path, f"run.folder={tmp_path}/whole")
    from_the_middle = f"run.resume={tmp_path}/whole/checkpoints/step_00000004"
    torch.rand(5)  # what this process drew before must not matter
    _, second_half = fit(path, f"run.folder={tmp_path}/half", from_the_middle)
    assert [line["loss"] for line in second_half] == [line["loss"] for line in whole[4:]]
    on_purpose = "run.accept_changes=[run.seed]"
    _, other = fit(path, "run.seed=1", on_purpose, f"run.folder={tmp_path}/other", from_the_middle)
    assert other[0]["loss"] != second_half[0]["loss"]
