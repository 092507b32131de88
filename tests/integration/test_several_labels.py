"""Runs on images that have several labels each."""

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.planning import fitting
from kappaface_dist.planning.fitting import check_machine, labels_per_image
from kappaface_dist.planning.job_size import JobSize
from kappaface_dist.planning.made_up_job import random_batches
from kappaface_dist.planning.memory import head_items
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.training.build import build_job
from kappaface_dist.training.derived import derived_numbers
from kappaface_dist.training.fit import open_here
from tests.commands import exit_line
from tests.integration.test_datasets import fit
from tests.processes import run_on_ranks
from tests.unit.data.made_records import write_records, write_vectors

NUM_STEPS, NUM_CLASSES, NUM_LABELS = 4, 9, 3


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "train.rec"
    rng = np.random.default_rng(0)
    labels = [rng.permutation(NUM_CLASSES)[:NUM_LABELS].tolist() for _ in range(30)]
    return write_vectors(path, labels, 32)


@pytest.fixture
def config(write_config, record):
    return write_config(
        run={"steps": NUM_STEPS},
        data={"batch_size": 12, "image_size": 32, "train": str(record), "labels": "mean"},
        backbone={"name": "tiny_gn", "embedding_size": 16},
        margin={"name": "kappaface", "scale": 16, "source": "memory"},
        head={"sample_rate": 0.5},
        optimizer={"lr": 0.02, "accumulate": 2},
        checkpoint={"every": None},
    )


@pytest.mark.parametrize(("how", "num_ranks"), [("mean", 2), ("draw", 0)])
def test_a_run_that_was_stopped_ends_bitwise_as_one_that_was_not(config, tmp_path, how, num_ranks):
    """Two micro-batches a step; how labels fall to ranks is tested at head and loader."""
    shared = [f"data.labels={how}", "data.batch_size=6"]

    def start(name, stop_after=None):
        return fit(config, *shared, f"run.folder={tmp_path / name}", stop_after=stop_after)

    whole = run_on_ranks(num_ranks, start, "whole")
    run_on_ranks(num_ranks, start, "parts", 3)
    second = run_on_ranks(num_ranks, start, "parts")
    for (lines, expected), (found, state) in zip(whole, second, strict=True):
        assert [found[step]["loss"] for step in found] == [lines[step]["loss"] for step in lines]
        for name, value in expected.items():
            np.testing.assert_array_equal(state[name], value, err_msg=name)


def test_cached_embeddings_are_the_same_step(config, tmp_path):
    steps = [
        fit(config, "run.steps=2", f"run.folder={tmp_path}/{cached}", *more)
        for cached in ("false", "true")
        for more in ([f"optimizer.cache_embeddings={cached}"],)
    ]
    assert steps[1][0][2]["loss"] == pytest.approx(steps[0][0][2]["loss"], rel=1e-4)


def test_other_labels_are_another_problem_and_the_head_sees_each(config, tmp_path):
    fit(config, "run.steps=1")
    with pytest.raises(ValueError, match=r"data\.labels was mean and is draw"):
        fit(config, "run.steps=2", "data.labels=draw")
    held = []
    for how, number in (("mean", NUM_LABELS), ("draw", 1), ("first", 1)):
        read = load_config(config, [f"data.labels={how}"])
        assert labels_per_image(read, [open_here(read)]) == number
        size = JobSize(NUM_CLASSES, 30, 1, labels_per_image=number)
        with pretend_ranks(1):
            held.append(head_items(read, size, "cpu")["held_embeddings"])
    assert held == [3 * held[1], held[1], held[1]]
    assert held[1] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.labels=all"], "data.labels is 'all': choose one of first, draw, mean"),
        (["data.train=ONE"], "one label each: leave data.labels out"),
        (
            ["data.train={a: {path: a, share: 0.5}, b: {path: b, share: 0.5}}"],
            "data.labels is mean, and data.train names several datasets",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(config, tmp_path, overrides, message):
    one = write_records(tmp_path / "one.rec", [0, 1, 1], 32)
    given = [text.replace("ONE", str(one)) for text in overrides]
    line = exit_line("launch/train.py", config, *given, "--check")
    assert line.startswith("error: ")
    assert message in line
    assert "\n" not in line


def test_check_says_how_many_labels_there_are(config, monkeypatch):
    opened = []
    monkeypatch.setattr(fitting, "open_here", lambda own: opened.append(own) or open_here(own))
    assert check_machine(load_config(config))["planned_megabytes_per_rank"] >= 0
    assert len(opened) == 1
    numbers = derived_numbers(build_job(load_config(config), torch.device("cpu")))
    assert numbers["labels_per_image"] == NUM_LABELS
    with pretend_ranks(1), pytest.raises(ValueError, match="made-up images have one label each"):
        random_batches(load_config(config), NUM_CLASSES, torch.device("cpu"))


def test_who_plans_without_the_data_says_so(config):
    line = exit_line("tools/plan.py", config, "--classes", "9")
    assert "plan.py knows one label each: let launch/train.py --check count" in line
