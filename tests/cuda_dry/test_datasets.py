"""Several datasets, a head each, around the steps on a GPU that is not here.

The steps themselves are among those of test_step.py, their memory in test_operations.py.
"""

from collections import Counter

import pytest

from kappaface_dist.checkpoint import tensors as checkpoint
from kappaface_dist.checkpoint import transplant
from kappaface_dist.checkpoint.saver import Saver
from kappaface_dist.head import ArcFace, KappaFace, PartialFC
from kappaface_dist.head.heads import heads_by_name
from kappaface_dist.planning.memory_meter import MemoryMeter
from kappaface_dist.planning.pretend_gpu import DEVICE, pretend_gpu
from kappaface_dist.training.head_log import head_numbers, start_counting
from kappaface_dist.training.loss_guard import LossGuard, likely_cause
from kappaface_dist.training.step import train_step
from tests.cuda_dry.collectives import check_types
from tests.cuda_dry.conftest import TINY, batches_of, learner_of, on_ranks
from tests.cuda_dry.settings import SETTINGS
from tests.cuda_dry.waits import table

BAD_LABEL = [0, 1, -1, 1, *(-1, -1, -1, 96), *(3, 9999, -1, 32)]  # of the second's images


@pytest.mark.parametrize("num_ranks", [1, 8])
def test_statistics_log_lines_and_the_guard(num_ranks):
    with on_ranks(num_ranks) as gpu:
        learner = learner_of(*TINY, *SETTINGS["two datasets"])
        guard = LossGuard(learner, late=True)
        start_counting(learner.head)
        gpu.waits.clear()
        train_step(
            learner,
            batches_of(learner),
            0.1,
            0,
            check=lambda loss, seen: guard.watch(loss, 0, seen),
            epoch={"a": 0, "b": 3},
        )
        for head in heads_by_name(learner.head).values():
            head.end_epoch()
            assert head.margins().device == DEVICE
        assert not gpu.waits
        gpu.value = 1.0
        numbers = head_numbers(learner.head)
        names = {"margin_mean", "rank_1", "loss/a", "loss/b", "rank_1/b", "concentration_p50/a"}
        assert names <= numbers.keys()
        places = Counter(wait.place for wait in gpu.waits)
        assert places["training/head_log.py head_numbers"] == 2
        assert set(places) <= set(table("a log line"))
        gpu.answers += BAD_LABEL
        evidence = guard.first_bad()
        assert evidence is not None
        assert "data.train.b: image 3" in likely_cause(learner, evidence, 0.1)
    check_types(gpu.collectives)


@pytest.fixture
def stored(tmp_path):
    """A checkpoint of two heads, from the CPU."""
    heads = two_heads("cpu")
    checkpoint.write(
        tmp_path / "step_1",
        tensors_of(heads),
        {"head": {name: head.counters() for name, head in heads.items()}},
    )
    return tmp_path / "step_1"


def two_heads(device):
    return {
        "a": PartialFC(3000, 32, KappaFace(), device=device),
        "b": PartialFC(700, 32, ArcFace(), device=device),
    }


def tensors_of(heads):
    return {
        f"{transplant.head_prefix(name)}{key}": tensor
        for name, head in heads.items()
        for key, tensor in head.sharded_state().items()
    }


def test_a_checkpoint_goes_into_the_device_and_out_of_it(stored, tmp_path):
    with pretend_gpu() as gpu:
        heads = two_heads(DEVICE)
        tensors = tensors_of(heads)
        sizes = {key: heads[key.split(".")[1]].num_classes for key in tensors}
        checkpoint.load(stored, {}, tensors, sizes)
        for name, head in heads.items():
            transplant.take_over(head, stored, None, name)
        assert {tensor.device for tensor in tensors_of(heads).values()} == {DEVICE}
        saver = Saver(tmp_path, keep=1, best=None, asynchronous=True)
        saver.reserve(tensors)
        gpu.waits.clear()
        with MemoryMeter() as meter:
            copies = saver.copies.take(tensors)
        assert [wait.why for wait in gpu.waits] == ["synchronize"]  # once for all heads
        assert meter.peak_bytes == 0
    assert {name for name, _ in copies} == tensors.keys()
    assert {tensor.device.type for tensor in copies.values()} == {"cpu"}
