"""A job of several datasets in the plan: their heads add up, their collectives do not."""

import re

import pytest

from kappaface_dist.config.file import load_config
from kappaface_dist.planning.between_steps import operation_bytes
from kappaface_dist.planning.capacity import capacities
from kappaface_dist.planning.collectives import head_calls
from kappaface_dist.planning.host_memory import host_memory
from kappaface_dist.planning.job_size import JobSize, jobs_of, size_given, size_of_datasets
from kappaface_dist.planning.memory import head_items, state_per_class
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.planning.step_time import DEVICES

SIZES = [(9000, 50_000), (3001, 9000)]


@pytest.fixture
def configs(tmp_path):
    """(of both datasets, of each alone)."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "run: {steps: 3}\n"
        "data: {batch_size: 16, train: {a: {path: a, share: 0.75}, b: {path: b, share: 0.25,"
        " margin: {name: kappaface, source: memory}, sample_rate: 0.5}}}\n"
        "backbone: {name: tiny, embedding_size: 32}\nmargin: {name: arcface}\n"
    )
    shared = ["backbone.embedding_size=32"]
    a = load_config(path, [*shared, "data.train=a", "data.batch_size=12"])
    memory = ["margin={name: kappaface, source: memory}", "head.sample_rate=0.5"]
    b = load_config(path, [*shared, "data.train=b", "data.batch_size=4", *memory])
    return load_config(path), a, b


def test_the_heads_of_several_datasets_add_up(configs):
    both, *alone = configs
    size = size_of_datasets(SIZES, 2)
    assert (size.num_classes, size.num_images, size.classes_per_rank) == (12_001, 59_000, 6001)
    with pretend_ranks(2):
        found = head_items(both, size, "cpu")
        parts = [
            head_items(own, JobSize(*n, 2), "cpu") for own, n in zip(alone, SIZES, strict=True)
        ]
        added = {name: sum(part.get(name, 0) for part in parts) for name in parts[1] | parts[0]}
        # Buffers are one's after another's: integration/test_plan.py, and tests/cuda_dry.
        buffers = "head_buffers"
        assert max(part[buffers] for part in parts) < found[buffers] < added[buffers]
        assert found == added | {buffers: found[buffers]}
        state = sum(state_per_class(both, size).values()) * size.classes_per_rank
        expected = sum(
            part[name] for part in parts for name in part if name.startswith(("centre", "class_"))
        )
        assert state == pytest.approx(expected, rel=1e-3)
        between = [
            operation_bytes(own, JobSize(*n, 2)) for own, n in zip(alone, SIZES, strict=True)
        ]
        assert operation_bytes(both, size) == {
            name: max(part[name] for part in between) for name in between[0]
        }
        copies = host_memory(both, size, "cpu").items["checkpoint_copies"]
    assert copies > expected


def test_they_exchange_what_one_head_does(configs):
    both, *alone = configs
    calls = head_calls(both, 4)
    assert [call.name for call in calls] == ["all_gather", "all_reduce", "reduce_scatter"]
    # 16 images of 32 numbers, a label, an epoch and a number in the class behind each.
    assert [call.num_bytes for call in calls] == [16 * (128 + 8 + 5), 16 * 4 * 8, 16 * 4 * 128]
    assert sum(call.num_bytes for own in alone for call in head_calls(own, 4)) < 2 * sum(
        call.num_bytes for call in calls
    )


def test_sizes_are_given_for_each_dataset(configs):
    both, alone, _ = configs
    assert size_given(both, [9000, 3001], None, 2) == size_of_datasets(
        [(9000, 40 * 9000), (3001, 40 * 3001)], 2
    )
    assert size_given(alone, [12], [30], 4).classes_of_each == [12]
    words = "--classes is given 1 times for 2 datasets (a, b): give it once for each, in order"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        size_given(both, [9000], None, 2)
    with pytest.raises(ValueError, match=r"^--images is given 2 times for 1 datasets"):
        size_given(alone, [12], [30, 30], 4)


def test_one_head_stands_for_all_in_a_table_of_capacities(configs):
    largest = next(capacities(configs[0], DEVICES["cpu"])).largest
    assert largest[8] > largest[1] > 0


def test_one_dataset_is_the_job_itself(configs):
    _, alone, _ = configs
    size = size_of_datasets([(10, 30)], 4)
    assert jobs_of(alone, size) == [(alone, size)]
    assert size.classes_per_rank == JobSize(10, 30, 4).classes_per_rank == 3
