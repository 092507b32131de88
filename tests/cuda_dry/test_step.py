"""Whole training steps of configs/glint360k.yaml on a GPU that is not here."""

from collections import Counter
from math import prod

import pytest
from torch import nn

from kappaface_dist.backbones import build_backbone
from kappaface_dist.head.heads import heads_by_name
from kappaface_dist.head.margins.build import MARGINS
from kappaface_dist.models.teacher import Teacher
from kappaface_dist.planning.count_collectives import NAMES, CountCollectives
from kappaface_dist.planning.gpu_head import KINDS, head_step, margins_of
from kappaface_dist.planning.plan import planned_calls
from kappaface_dist.planning.pretend_gpu import DEVICE
from kappaface_dist.training import distillation
from kappaface_dist.training.step import train_step
from tests.cuda_dry.collectives import check_types
from tests.cuda_dry.conftest import TINY, batches_of, configure, learner_of, on_ranks
from tests.cuda_dry.settings import SETTINGS
from tests.cuda_dry.synced import synced_batchnorm
from tests.cuda_dry.waits import table

THREE = ["_allgather_base_", "allreduce_", "_reduce_scatter_base_"]
# Where a step waits, by the setting: place in the head's README -> how often a step.
WAITS = {
    "fp16": {"training/step.py _update_backbone": 1},
    "skip_mass": {"head/softmax/negligible.py images": 1},
}


def run(gpu, learner, num_steps=2, **options):
    """Two steps; the waits of the last by place."""
    for step in range(num_steps):
        gpu.waits.clear()
        gpu.collectives.clear()
        loss = train_step(learner, batches_of(learner), 0.1, step, **options)
        assert loss.device.type == "cuda"
        assert loss.shape == ()
    tensors = list(learner.network.state_dict().values())
    for head in heads_by_name(learner.head).values():
        tensors += head.sharded_state().values()
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    return Counter(wait.place for wait in gpu.waits)


@pytest.mark.parametrize(
    ("case", "num_ranks"),
    [*((case, 8) for case in SETTINGS), ("as it is", 1), ("as it is", 512), ("skip_mass", 512)],
)
def test_a_step_waits_where_the_readme_says(case, num_ranks):
    overrides = SETTINGS[case]
    with on_ranks(num_ranks, num_ranks // 2) as gpu:
        planned = planned_for(overrides, num_ranks)
        waits = run(gpu, learner_of(*TINY, *overrides))
        check_types(gpu.collectives)
        assert sent(gpu) == planned
    assert waits == WAITS.get(case, {})
    assert set(waits) <= set(table("a step"))
    # DDP's own, which stand for as many as it has buckets, are not of the head.
    head = [c for c in gpu.collectives if c.place.startswith("head/")]
    times = learner_times(overrides)
    # Micro-batches that sample their classes announce their labels first.
    announced = THREE[:1] * (case in ("sampled and accumulated", "two datasets, one sampled"))
    expected = announced + THREE * times + THREE[:1] * (case == "an encoder")
    # A window that ends in the step: what all ranks' statistics have in common.
    expected += ["allreduce_"] * 3 * (case == "short windows")
    assert [call.name for call in head] == (expected if num_ranks > 1 else [])


def sent(gpu):
    """(name, bytes) of each collective of the step."""
    return sorted(
        (NAMES[call.name][0], prod(call.shape) * call.dtype.itemsize) for call in gpu.collectives
    )


def planned_for(overrides, num_ranks):
    calls = planned_calls(configure(*TINY, *overrides), num_ranks)
    return sorted((call.name, call.num_bytes) for call in calls)


def learner_times(overrides):
    """How often the head sees a batch in a step."""
    if "optimizer.cache_embeddings=true" in overrides:
        return 1
    counts = [int(o.split("=")[1]) for o in overrides if o.startswith("optimizer.accumulate")]
    return counts[0] if counts else 1


@pytest.mark.parametrize("name", MARGINS)
def test_every_margin(name):
    overrides = [f"margin.name={name}"]
    with on_ranks(8) as gpu:
        planned = planned_for(overrides, 8)
        assert not run(gpu, learner_of(*TINY, *overrides))
        check_types(gpu.collectives)
        assert sent(gpu) == planned


@pytest.mark.parametrize("source", ["memory", "encoder"])
def test_other_embeddings_for_the_statistics(source):
    with on_ranks(8) as gpu:
        overrides = [*TINY, f"margin.source={source}", "optimizer.accumulate=2"]
        learner = learner_of(*overrides)
        assert not run(gpu, learner)
        head = [c.name for c in gpu.collectives if c.place.startswith("head/")]
        learner.head.end_epoch()
        learner.head.end_epoch()
    # The encoder's embeddings are gathered once a step.
    assert head == THREE * 2 + THREE[:1] * (source == "encoder")
    check_types(gpu.collectives)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_of_the_first_check_on_a_gpu(gpu, kind):
    """In chunks of which the last is not whole; all that `gpu_check` compares."""
    settings, _ = KINDS[kind]
    for name in margins_of(kind):
        found = head_step(name, DEVICE, **settings)
        assert {tensor.device.type for tensor in found.values()} == {"cpu"}


@pytest.mark.parametrize(
    "overrides", [["distill.kind=cosine"], ["distill.kind=relation", "distill.margin_loss=false"]]
)
def test_a_teacher(monkeypatch, overrides):
    teacher = Teacher(build_backbone("tiny", embedding_size=128, image_size=32), 128, "", None)
    monkeypatch.setattr(distillation, "load_teacher", lambda *_: teacher)
    with on_ranks(8) as gpu:
        learner = learner_of(*TINY, "distill.model=none", *overrides)
        assert not run(gpu, learner)
        gpu.value = 2.0
        assert learner.distiller.take() == {"distill_loss": 1.0, "distill_left_out": 2.0}
    check_types(gpu.collectives)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["backbone.checkpointing=true"],
        ["optimizer.accumulate=2", "optimizer.cache_embeddings=true"],
    ],
)
def test_synced_batchnorm(overrides):
    """torch's own waits in each layer, since a rank's batch might be empty."""
    with synced_batchnorm(), on_ranks(8) as gpu:
        learner = learner_of(*TINY, "backbone.sync_batchnorm=true", *overrides)
        waits = run(gpu, learner)
        with CountCollectives() as count:
            train_step(learner, batches_of(learner), 0.1, 2)
        planned = planned_calls(learner.config, 8)
    layers = [m for m in learner.network.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(layers) > 3
    calls = sorted((call.name, call.num_bytes) for call in planned)
    assert sorted((call.name, call.num_bytes) for call in count.calls) == calls
    gathers = sum(call.item == "batchnorm_all_gather" for call in planned)
    assert gathers >= len(layers)
    assert sum(waits.values()) == 3 * gathers
    assert set(waits) <= set(table("a step"))
    check_types(gpu.collectives)


def test_r100_at_its_size_and_all_classes():
    with on_ranks(8) as gpu:
        assert not run(gpu, learner_of(num_classes=360_232), num_steps=1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_frozen_start(gpu, precision):
    """Nothing of the backbone is updated, so fp16's scaler asks for nothing either."""
    assert not run(gpu, learner_of(*TINY, f"precision={precision}"), backbone_factor=0.0)


def test_an_overflow_in_fp16_is_skipped(gpu):
    learner = learner_of(*TINY, "precision=fp16")
    gpu.value = 1.0  # the scaler reads that there was one
    run(gpu, learner)


def test_some_images_of_a_chunk_are_left_out(gpu):
    learner = learner_of(*TINY, "head.skip_mass=0.1")
    gpu.value = 5
    run(gpu, learner)
