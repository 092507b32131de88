"""Micro-batches of any sizes are the batch of all their images, for every margin."""

import numpy as np
import pytest
import torch

from kappaface_dist.head import AdaFace, ArcFace, CurricularFace, PartialFC, SGDRows
from kappaface_dist.head.softmax import settings
from kappaface_dist.parallel import ranks as parallel
from tests.dense_margins import MARGINS
from tests.head_steps import own_images
from tests.processes import run_on_ranks

NUM_CLASSES, SIZE, NUM_IMAGES, NUM_STEPS = 97, 8, 24, 3
LR = 0.02
# Float64 sums in another order, three steps at scale 64.
EXACT = {"rtol": 1e-8, "atol": 1e-10}
WHOLE, UNEVEN, EVEN = (12,), (1, 7, 4), (4, 4, 4)


def global_batch(step):
    generator = torch.Generator().manual_seed(step)
    embedding_GD = torch.randn(NUM_IMAGES, SIZE, dtype=torch.float64, generator=generator)
    length_G1 = torch.linspace(0.5, 8, NUM_IMAGES, dtype=torch.float64)[:, None]
    label_G = torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator)
    label_G[-1] = label_G[0]  # one class in the first micro-batch and in the last
    return embedding_GD * length_G1, label_G


def train(margin, sizes, sample_rate, options):
    """Everything that a few steps leave behind, the images' gradients in their order."""
    head = PartialFC(
        NUM_CLASSES,
        SIZE,
        margin,
        images_per_class=np.arange(1, NUM_CLASSES + 1),
        sample_rate=sample_rate,
        optimizer=SGDRows(momentum=0.5),
        dtype=torch.float64,
        seed=1,
        **options,
    )
    found = {}
    for step in range(NUM_STEPS):
        embedding_BD, label_B = map(own_images, global_batch(step))
        parts = [n * 2 // parallel.world_size() for n in sizes]
        share = len(label_B)
        if len(parts) > 1:
            head.announce(label_B)
        gradients, total = [], 0.0
        for micro_BD, micro_B in zip(embedding_BD.split(parts), label_B.split(parts), strict=True):
            micro_BD = micro_BD.clone().requires_grad_()
            loss = head(micro_BD, micro_B) * (len(micro_B) / share)
            loss.backward()
            total += loss.item()
            gradients.append(micro_BD.grad)
        head.step(LR)
        found |= {f"loss {step}": total, f"gradient {step}": torch.cat(gradients).numpy()}
    head.refresh()
    state = head.sharded_state() | head.replicated_state()
    return found | {name: tensor.numpy() for name, tensor in state.items()}


def train_all_ways(sample_rate):
    """By margin: the whole batch, and two ways to cut it. `plus` sorts the images of a batch."""
    return {
        name: [train(margin, sizes, sample_rate, {}) for sizes in (WHOLE, UNEVEN, EVEN)]
        for name, margin in MARGINS.items()
        if not getattr(margin, "plus", False)
    }


@pytest.mark.parametrize("num_ranks", [0, 2])
@pytest.mark.parametrize("sample_rate", [1.0, 0.2])
def test_every_margin_sees_the_large_batch(num_ranks, sample_rate):
    for results in run_on_ranks(num_ranks, train_all_ways, sample_rate):
        for name, (whole, *others) in results.items():
            for parts in others:
                for key, value in whole.items():
                    np.testing.assert_allclose(parts[key], value, **EXACT, err_msg=f"{name}: {key}")


def test_elasticface_plus_sorts_the_images_of_a_micro_batch():
    """As its docstring says: the only one that accumulation changes."""
    margin = MARGINS["elasticface_plus"]
    whole, parts = (train(margin, sizes, 1.0, {}) for sizes in (WHOLE, EVEN))
    assert abs(parts["loss 0"] - whole["loss 0"]) > 1e-3


@pytest.mark.parametrize("sample_rate", [0.2, 1.0])
@pytest.mark.parametrize(
    "options", [{"logit_cache_bytes": 1 << 20}, {"skip_mass": 1e-12}], ids=["cache", "tiles"]
)
def test_what_the_first_passes_keep_serves_micro_batches_of_any_size(
    options, sample_rate, monkeypatch
):
    """The chunks of a small micro-batch are longer than those of a large one."""
    monkeypatch.setattr(settings, "fitting_rows", lambda size, images, *_: max(1, 300 // images))
    whole, parts = (train(ArcFace(), sizes, sample_rate, options) for sizes in (WHOLE, UNEVEN))
    # bf16 keeps 8 bits of each share; a chunk's logits at the wrong place are off by all of it.
    limit = 2e-3 if "logit_cache_bytes" in options else 1e-9
    difference = np.linalg.norm(parts["weight"] - whole["weight"])
    assert difference < limit * np.linalg.norm(whole["weight"])
    assert parts["loss 1"] == pytest.approx(whole["loss 1"], rel=limit)


def losses(head, *sizes):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        embedding_BD = torch.randn(size, SIZE, generator=generator).requires_grad_()
        head(embedding_BD, torch.arange(size)).backward()


def test_losses_of_different_samples_are_refused_before_anything_changes():
    head = PartialFC(NUM_CLASSES, SIZE, ArcFace(), sample_rate=0.2)
    before = head.weight_KD.clone()
    losses(head, 4, 4)
    with pytest.raises(ValueError, match=r"the 2 losses .* drew different classes: call head\.ann"):
        head.step(LR)
    assert torch.equal(head.weight_KD, before)
    head.discard()
    losses(head, 4)
    head.step(LR)
    whole = PartialFC(NUM_CLASSES, SIZE, ArcFace())
    losses(whole, 4, 2)  # without sampling nothing needs to be announced
    whole.step(LR)


def test_what_was_not_announced_is_refused():
    head = PartialFC(NUM_CLASSES, SIZE, ArcFace(), sample_rate=0.2)
    head.announce(torch.tensor([0, 1, 2, 0, 1, 3]))
    losses(head, 3)
    with pytest.raises(ValueError, match=r"image 2 of the batch of rank 0 has another label than"):
        losses(head, 3)
    with pytest.raises(ValueError, match=r"6 labels a rank were announced .* have 7"):
        losses(head, 4)
    with pytest.raises(ValueError, match=r"announce\(\) after a loss of 3 images"):
        head.announce(torch.tensor([0]))
    head.step(LR)
    losses(head, 4)  # a step of one loss draws for itself again
    head.step(LR)


@pytest.mark.parametrize("margin", [AdaFace(), CurricularFace()], ids=["adaface", "curricularface"])
def test_running_values_move_once_a_step_and_not_with_a_skipped_one(margin):
    head = PartialFC(NUM_CLASSES, SIZE, margin)
    start = {name: value.clone() for name, value in head.replicated_state().items()}
    losses(head, 4, 3)
    assert head.replicated_state() == start
    head.step(LR, skip=torch.tensor(True))
    assert head.replicated_state() == start
    losses(head, 4, 3)
    head.step(LR, skip=torch.tensor(False))
    assert all((value != start[name]).all() for name, value in head.replicated_state().items())
