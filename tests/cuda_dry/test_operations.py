"""What a rank takes at its real size, item by item, against the plan; and what it must not take."""

import pytest

from kappaface_dist.config.datasets import datasets
from kappaface_dist.planning.between_steps import operation_bytes as planned_operations
from kappaface_dist.planning.job_size import jobs_of, size_given
from kappaface_dist.planning.made_up_job import made_up_job
from kappaface_dist.planning.memory import head_items, memory_items
from kappaface_dist.planning.operations import rehearse_without_a_gpu
from kappaface_dist.planning.plan import planned_calls
from kappaface_dist.planning.pretend_gpu import DEVICE, pretend_gpu
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.planning.rehearsal import rehearse_steps
from tests.cuda_dry.conftest import configure
from tests.cuda_dry.settings import SETTINGS

SMALL = ["backbone.name=tiny", "data.image_size=32", "data.batch_size=16"]
RANKS, CLASSES = 8, (400_000, 150_000)  # the second of another dataset
STATE = ("centres", "centre_optimizer", "class_statistics")
# Those that change what is held, or how it is worked on.
CASES = {
    name: SETTINGS[name]
    for name in (
        *("as it is", "fp32", "adamw", "bf16 centres", "sampled", "cached embeddings"),
        *("checkpointing", "skip_mass", "target cosines", "a memory", "an encoder"),
        *("short windows", "sub-centres", "two datasets", "two datasets, one sampled"),
    )
} | {
    "accumulated, some cached": ["optimizer.accumulate=3", "head.logit_cache_bytes=8000000"],
    "no statistics": ["margin.name=arcface"],
    "other classes change": ["margin.name=curricularface"],
}


# Ten seconds each.
LONG = ("fp32", "cached embeddings", "checkpointing", "skip_mass", "an encoder")
LONG += ("other classes change",)


def within(planned, executed):
    return abs(planned - executed) <= 0.02 * executed + 2e5


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.long] * (c in LONG)) for c in CASES]
)
def test_every_item_and_operation_is_as_planned(case):
    config = configure(*SMALL, *CASES[case])
    size = size_given(config, CLASSES if len(datasets(config)) > 1 else CLASSES[:1], None, RANKS)
    with pretend_ranks(RANKS):
        found = rehearse_without_a_gpu(config, size)
        memory, calls = memory_items(config, size, "cuda"), planned_calls(config, RANKS)
        operations = planned_operations(config, size)
    executed = found["memory_bytes"]
    missed = {
        item: (memory[item], num_bytes)
        for item, num_bytes in executed.items()
        if not within(memory[item], num_bytes)
    }
    assert not missed
    # The exchange's own types and sizes: a reduce in float64 would be twice as long.
    assert [(c.name, c.num_bytes) for c in found["collectives"]] == [
        (c.name, c.num_bytes) for c in calls
    ]
    state = sum(executed[item] for item in STATE)
    for name, (device, _) in found["operation_bytes"].items():
        if name in operations:
            assert within(operations[name], device), name
        else:  # nothing that a plan would have to know
            assert device <= 0.02 * state, name
    # All of the state but the count of each class, which comes from the dataset.
    counts = sum(
        4 * own_size.classes_per_rank
        for own, own_size in jobs_of(config, size)
        if own.margin["name"] == "kappaface"
    )
    assert within(found["operation_bytes"]["save"][1], state - counts)


def test_buffers_of_a_step_are_those_of_three_chunks():
    """Of eight chunks; where there are fewer, the plan's heads are the job's, and agree with it."""
    config = configure(*SMALL, *CASES["no statistics"])
    size = size_given(config, [4_000_000], None, RANKS)
    with pretend_ranks(RANKS):
        with pretend_gpu():
            job = made_up_job(config, size.classes_of_each, DEVICE)
            executed = rehearse_steps(job, fake=True)["memory_bytes"]
        planned = head_items(config, size, "cuda")
    assert not [name for name, value in planned.items() if not within(value, executed[name])]
