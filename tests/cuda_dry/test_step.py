"""Whole training steps of configs/glint360k.yaml on a GPU that is not here."""

from collections import Counter

import pytest
import torch

from kappaface_dist.head.margins.build import MARGINS
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.step import train_step
from tests.cuda_dry.collectives import check_types
from tests.cuda_dry.conftest import TINY, batches_of, learner_of, on_ranks
from tests.cuda_dry.waits import table

THREE = ["_allgather_base_", "allreduce_", "_reduce_scatter_base_"]
# Where a step may wait, by the case: place in the head's README -> how often a step.
CASES = {
    "as it is": ([], {}),
    "fp32": (["precision=fp32", "head.dtype=fp32"], {}),
    "fp16": (["precision=fp16"], {"training/step.py train_step": 1}),
    "plain products": (["head.fused=false"], {}),
    "no cache": (["head.logit_cache_bytes=0"], {}),
    "filter": (["head.filter_threshold=0.4"], {}),
    "bf16 momentum": (["head.momentum_dtype=bf16"], {}),
    "bf16 centres": (["head.centre_dtype=bf16", "head.momentum_dtype=none"], {}),
    "bf16 centres, plain": (["head.centre_dtype=bf16", "head.fused=false"], {}),
    "adamw": (["optimizer.name=adamw"], {}),
    "sampled": (["head.sample_rate=0.1"], {}),
    "accumulated": (["optimizer.accumulate=3"], {}),
    "sampled and accumulated": (["optimizer.accumulate=2", "head.sample_rate=0.1"], {}),
    "cached embeddings": (["optimizer.accumulate=2", "optimizer.cache_embeddings=true"], {}),
    "skip_mass": (["head.skip_mass=0.01"], {"head/softmax/negligible.py images": 1}),
    "gradients in bf16": (["backbone.gradient_dtype=bf16"], {}),
}


def run(gpu, learner, num_steps=2, **options):
    """Two steps; the waits of the last by place."""
    for step in range(num_steps):
        gpu.waits.clear()
        gpu.collectives.clear()
        loss = train_step(learner, batches_of(learner), 0.1, step, **options)
        assert loss.device.type == "cuda"
        assert loss.shape == ()
    tensors = [*learner.network.state_dict().values(), *learner.head.sharded_state().values()]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    return Counter(wait.place for wait in gpu.waits)


@pytest.mark.parametrize(
    ("case", "num_ranks"),
    [*((case, 8) for case in CASES), ("as it is", 1), ("as it is", 512), ("skip_mass", 512)],
)
def test_a_step_waits_where_the_readme_says(case, num_ranks):
    overrides, expected = CASES[case]
    with on_ranks(num_ranks, num_ranks // 2) as gpu:
        waits = run(gpu, learner_of(*TINY, *overrides))
    assert waits == expected
    assert set(waits) <= set(table("a step"))
    # DDP's own, which stand for as many as it has buckets, are not of the head.
    head = [c for c in gpu.collectives if c.place.startswith("head/")]
    times = learner_times(overrides)
    # Micro-batches that sample their classes announce their labels first.
    announced = THREE[:1] * (case == "sampled and accumulated")
    assert [call.name for call in head] == (announced + THREE * times if num_ranks > 1 else [])
    check_types(gpu.collectives)


def learner_times(overrides):
    """How often the head sees a batch in a step."""
    if "optimizer.cache_embeddings=true" in overrides:
        return 1
    counts = [int(o.split("=")[1]) for o in overrides if o.startswith("optimizer.accumulate")]
    return counts[0] if counts else 1


@pytest.mark.parametrize("name", MARGINS)
def test_every_margin(name):
    with on_ranks(8) as gpu:
        assert not run(gpu, learner_of(*TINY, f"margin.name={name}"))
    check_types(gpu.collectives)


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


def a_cpu_tensor(learner):
    learner.head.class_margins.margin_K = torch.ones(len(learner.head.classes))


def a_read(learner):
    forward = learner.head.forward

    def read(embedding_BD, label_B, *others):
        label_B.max().item()
        return forward(embedding_BD, label_B, *others)

    learner.head.forward = read


def test_a_tensor_on_the_host_is_noticed(gpu):
    learner = learner_of(*TINY)
    a_cpu_tensor(learner)
    with pytest.raises(RuntimeError, match=r"cuda:0|different devices"):
        run(gpu, learner)


def test_a_read_is_noticed(gpu):
    learner = learner_of(*TINY)
    a_read(learner)
    assert sum(run(gpu, learner).values()) == 1


def test_a_type_that_nccl_does_not_take_is_noticed():
    with on_ranks(8) as gpu:
        parallel.all_reduce_sum(torch.ones(3, dtype=torch.int16, device="cuda:0"))
    with pytest.raises(AssertionError, match="int16"):
        check_types(gpu.collectives)
