"""What a rank takes at its real size, item by item, against the plan; and what it must not take."""

import pytest

from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.planning.between_steps import operation_bytes as planned_operations
from kappaface_dist.planning.count_collectives import CountCollectives
from kappaface_dist.planning.memory import JobSize, memory_items
from kappaface_dist.planning.operations import operation_bytes, rehearse_without_a_gpu
from kappaface_dist.planning.plan import planned_calls
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.training import loss_guard
from kappaface_dist.training.step import train_step
from tests.cuda_dry.conftest import batches_of, configure, learner_of, on_ranks
from tests.cuda_dry.settings import SETTINGS

SMALL = ["backbone.name=tiny", "data.image_size=32", "data.batch_size=16"]
RANKS, CLASSES = 8, 400_000
SIZE = JobSize(CLASSES, 40 * CLASSES, RANKS)
STATE = ("centres", "centre_optimizer", "class_statistics")
# Those that change what is held, or how it is worked on.
CASES = {
    name: SETTINGS[name]
    for name in (
        *("as it is", "fp32", "adamw", "bf16 centres", "sampled", "cached embeddings"),
        *("checkpointing", "skip_mass", "target cosines", "a memory", "an encoder"),
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
    with pretend_ranks(RANKS):
        found = rehearse_without_a_gpu(config, SIZE)
        memory, calls = memory_items(config, SIZE, "cuda"), planned_calls(config, RANKS)
        operations = planned_operations(config, SIZE)
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
    statistics = int(executed["class_statistics"] > 0 and "arcface" not in str(config.margin))
    state = sum(executed[item] for item in STATE)
    for name, (device, _) in found["operation_bytes"].items():
        if name in operations:
            assert within(operations[name], device), name
        else:  # nothing that a plan would have to know
            assert device <= 0.02 * state, name
    # All of the state but the count of each class, which comes from the dataset.
    assert within(
        found["operation_bytes"]["save"][1], state - statistics * 4 * SIZE.classes_per_rank
    )


@pytest.fixture
def job():
    with on_ranks(RANKS) as gpu:
        yield learner_of(*SMALL, num_classes=CLASSES), gpu


def test_a_copy_of_the_centres_is_noticed(job, monkeypatch):
    learner, gpu = job
    monkeypatch.setattr(loss_guard, "all_finite", lambda weight_KD: bool(weight_KD.clone().sum()))
    found = operation_bytes(learner, gpu)
    assert found["diagnosis"][0] == pytest.approx(learner.head.weight_KD.nbytes, rel=0.01)
    others = [device for name, (device, _) in found.items() if name != "diagnosis"]
    assert max(others) < 0.02 * 3 * learner.head.weight_KD.nbytes


def test_a_longer_reduce_is_noticed(job, monkeypatch):
    """In float64, which NCCL takes, but nothing of the head's needs."""
    learner, _ = job
    real = parallel.all_reduce_sum
    monkeypatch.setattr(parallel, "all_reduce_sum", lambda x: real(x.double()).to(x.dtype))
    with CountCollectives() as count:
        train_step(learner, batches_of(learner), 0.1, 0)
    planned = [(c.name, c.num_bytes) for c in planned_calls(learner.config, RANKS)]
    executed = [(c.name, c.num_bytes) for c in count.calls]
    assert [name for name, _ in executed] == [name for name, _ in planned]
    assert sum(e != p for e, p in zip(executed, planned, strict=True)) == 1
