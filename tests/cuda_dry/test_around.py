"""Around the steps on a GPU that is not here: statistics, log lines, evaluation, state."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode

from kappaface_dist.backbones import build_backbone
from kappaface_dist.checkpoint import tensors as checkpoint
from kappaface_dist.checkpoint import transplant
from kappaface_dist.checkpoint.saver import Saver
from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.evaluation.embedding.embed import embed_images
from kappaface_dist.head import AdamWRows, ArcFace, KappaFace, PartialFC
from kappaface_dist.head.softmax.products import multiply
from kappaface_dist.planning.memory_meter import MemoryMeter, num_bytes
from kappaface_dist.planning.pretend_gpu import DEVICE, pretend_gpu
from kappaface_dist.training.loss_guard import LossGuard, likely_cause
from kappaface_dist.training.step import train_step
from tests.cuda_dry.collectives import check_types
from tests.cuda_dry.conftest import TINY, batches_of, learner_of, on_ranks
from tests.cuda_dry.waits import table
from tests.unit.data.made_records import write_records

STATISTICS = [
    KappaFace(),
    KappaFace(statistic="target_cosine"),
    KappaFace(shrinkage=5.0),
    KappaFace(estimator="plugin", refresh_steps=1, decay=0.5),
    ArcFace(),
]


def places(gpu):
    return Counter(wait.place for wait in gpu.waits)


@pytest.mark.parametrize("margin", STATISTICS, ids=repr)
@pytest.mark.parametrize("num_ranks", [1, 8])
def test_a_window_of_the_statistics_ends_without_a_wait(margin, num_ranks):
    with on_ranks(num_ranks) as gpu:
        head = PartialFC(5000, 64, margin, device=DEVICE)
        gpu.waits.clear()
        head.refresh()
        assert not gpu.waits
        assert head.margins().device == DEVICE
    check_types(gpu.collectives)


@pytest.mark.parametrize("num_ranks", [1, 8])
def test_a_log_line_waits_where_the_readme_says(num_ranks):
    with on_ranks(num_ranks) as gpu:
        learner = learner_of(*TINY, "head.skip_mass=0.01", "head.sub_centres=2")
        learner.head.rank_one.start()
        train_step(learner, batches_of(learner), 0.1, 0)
        gpu.waits.clear()
        gpu.value = 1.0
        numbers = learner.head.summary()
        assert learner.head.rank_one.take() is not None
        names = {"margin_mean", "concentration_p50", "skipped_mass", "non_dominant_share"}
        assert names <= numbers.keys()
        assert set(places(gpu)) <= set(table("a log line"))
        assert places(gpu)["head/margins/psi.py concentration_summary"] == 3
    check_types(gpu.collectives)


EVIDENCE = {  # (position, is_nan, image, sound weights, label's place, label, embedding, images)
    "input": [0, 1, 3, 1, -1, -1, -1, 128],
    "label": [0, 1, -1, 1, 2, 9999, -1, 128],
    "learning rate: backbone": [0, 1, -1, 0, -1, -1, -1, 128],
    "though the weights are finite": [0, 1, -1, 1, -1, -1, 4, 128],
    "class centres": [0, 1, -1, 1, -1, -1, -1, 128],
    "scale": [0, 0, -1, 1, -1, -1, -1, 128],
}


@pytest.mark.parametrize("words", EVIDENCE)
def test_the_loss_guard_watches_without_a_wait_and_finds_each_cause(gpu, words):
    learner = learner_of(*TINY)
    guard = LossGuard(learner, late=True)
    gpu.waits.clear()
    train_step(
        learner, batches_of(learner), 0.1, 0, check=lambda loss, seen: guard.watch(loss, 0, seen)
    )
    assert not gpu.waits
    gpu.answers += EVIDENCE[words]
    evidence = guard.first_bad()
    assert evidence is not None
    assert words in likely_cause(learner, evidence, 0.1)
    assert set(places(gpu)) <= {
        "training/loss_guard.py first_bad",
        "training/loss_guard.py _own_cause",
        "head/checks.py <genexpr>",  # the diagnosis, a part of the centres at a time
    } | {"training/loss_guard.py <genexpr>"}


def test_a_good_loss_leaves_no_evidence(gpu):
    guard = LossGuard(learner_of(*TINY), late=True)
    gpu.value = -1
    assert guard.first_bad() is None


def test_looking_for_the_cause_takes_no_copy_of_the_centres(gpu):
    learner = learner_of(*TINY, num_classes=300_000)
    guard = LossGuard(learner, late=True)
    gpu.answers += EVIDENCE["class centres"]
    evidence = guard.first_bad()
    num_centres = num_bytes([learner.head.weight_KD])  # from here on plain: no layout to change
    with MemoryMeter() as meter:
        likely_cause(learner, evidence, 0.1)
    assert meter.peak_bytes < 0.1 * num_centres


def test_evaluation_embeds_on_the_device(gpu):
    network = build_backbone("tiny", embedding_size=64, image_size=32).to(DEVICE)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    found, length_B = embed_images(
        network, [encode_jpeg(p) for p in pixels], image_size=32, batch_size=2, device=DEVICE
    )
    assert found.shape == (5, 64)
    assert found.dtype == np.float64
    assert length_B.shape == (5,)


def test_the_saver_copies_into_pinned_memory_and_waits_once(gpu, tmp_path):
    learner = learner_of(*TINY)
    tensors = learner.head.sharded_state() | dict(learner.network.state_dict())
    saver = Saver(tmp_path, keep=1, best=None, asynchronous=True)
    saver.reserve(tensors)
    gpu.waits.clear()
    with MemoryMeter() as meter:
        copies = saver.copies.take(tensors)
    assert [wait.why for wait in gpu.waits] == ["synchronize"]
    assert meter.peak_bytes == 0
    assert {tensor.device.type for tensor in copies.values()} == {"cpu"}
    assert all(tensor.is_pinned() for tensor in copies.values())


@pytest.fixture
def stored(tmp_path):
    """A checkpoint of a head of 3000 classes, from the CPU."""
    head = PartialFC(3000, 32, KappaFace(), optimizer=AdamWRows())
    state = {f"head.{name}": tensor for name, tensor in head.sharded_state().items()}
    checkpoint.write(tmp_path / "step_1", state, {"head": head.counters()})
    return tmp_path / "step_1"


def test_a_new_head_takes_over_an_earlier_ones_classes_a_part_at_a_time(stored, monkeypatch):
    monkeypatch.setattr(transplant, "TAKEN_ROWS", 100)
    with pretend_gpu():
        head = PartialFC(3000, 32, KappaFace(), optimizer=AdamWRows(), device=DEVICE)
        copies = []
        with OnDevice(copies):
            transplant.take_over(head, stored, None)
        assert {tensor.device for tensor in head.sharded_state().values()} == {DEVICE}
    # Rows that come, at most; never the whole of the centres.
    assert copies
    assert max(copies) <= 100 * 32 * 4


class OnDevice(TorchDispatchMode):
    """Notes the bytes of each tensor that comes from the host."""

    def __init__(self, copies):
        super().__init__()
        self.copies = copies

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_cuda and "_to_copy" in func.name():
            self.copies.append(out.nbytes)
        return out


def test_the_loader_hands_its_batches_over_without_a_wait(tmp_path):
    catalog = open_catalog(write_records(tmp_path / "train.rec", list(range(20)), size=32))
    with pretend_gpu() as gpu:
        loader = build_loader(catalog, loader="auto", batch_size=4, image_size=32, device=DEVICE)
        for batch in loader.batches(0, 3):
            assert batch.image_B3HW.device == batch.label_B.device == DEVICE
            assert batch.image_B3HW.shape == (4, 3, 32, 32)
    assert not gpu.waits


def test_an_image_in_ordinary_memory_would_be_waited_for():
    """A non_blocking copy of memory that is not pinned: as a label's was, before it was."""
    with pretend_gpu() as gpu:
        torch.zeros(4).to(DEVICE, non_blocking=True)
        assert len(gpu.waits) == 1
        torch.zeros(4).pin_memory().to(DEVICE, non_blocking=True)
        assert len(gpu.waits) == 1


def test_a_checkpoint_is_read_into_the_device(stored):
    with pretend_gpu():
        head = PartialFC(3000, 32, KappaFace(), optimizer=AdamWRows(), device=DEVICE)
        state = {f"head.{name}": tensor for name, tensor in head.sharded_state().items()}
        checkpoint.load(stored, {}, state, 3000)
        assert {tensor.device for tensor in state.values()} == {DEVICE}


def test_a_product_with_sums_of_another_type_is_pretended_whatever_torch_makes_of_it(monkeypatch):
    addmm = torch.ops.aten.addmm
    for overload in ("dtype", "dtype_out"):  # as torch 2.8 to 2.12 have them: the type is a factor
        monkeypatch.setitem(decomposition_table, getattr(addmm, overload), factor_for_type)
    with pretend_gpu(), MemoryMeter() as meter:
        sums = torch.zeros(4, 3, device=DEVICE)
        a, b = (
            torch.ones(shape, dtype=torch.bfloat16, device=DEVICE) for shape in ((4, 8), (8, 3))
        )
        before = meter.live_bytes
        multiply(a, b, torch.bfloat16, out=sums, add=True)
        assert meter.live_bytes == before
        with pytest.raises(ValueError, match=r"\(4, 3\) \+ \(4, 8\) @ \(4, 8\)"):
            torch.addmm(sums, a, a, out_dtype=sums.dtype, out=sums)


def factor_for_type(*_, **__):
    raise TypeError("unsupported operand type(s) for *: 'torch.dtype' and 'FakeTensor'")
