"""Every margin through the sharded head, against its paper's formula on a dense class matrix."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kappaface_dist.backbones import build_backbone
from kappaface_dist.counter_random import mix64
from kappaface_dist.head import AdaFace, CurricularFace, KappaFace, MagFace, PartialFC, SGDRows
from kappaface_dist.head.margins import Images
from kappaface_dist.head.shard import initial_centres
from tests.dense_margins import MARGINS, margin_loss
from tests.head_steps import take_steps
from tests.processes import run_on_ranks

NUM_CLASSES, SIZE, NUM_IMAGES, NUM_STEPS, SEED = 53, 8, 12, 3, 5
LR = 0.01
PLAIN = SGDRows(momentum=0.0, weight_decay=0.0)
# Float64 sums in another order; a few steps at scale 64 amplify the roundings.
EXACT = {"rtol": 1e-8, "atol": 1e-10}
PARAMETRIZE = pytest.mark.parametrize("name", MARGINS)


def global_batch(step):
    """Images around their centres, so that θ, and with it every branch, varies; norms 0.5 to 8."""
    generator = torch.Generator().manual_seed(step)
    label_G = torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator)
    weight_CD = initial_centres(range(NUM_CLASSES), SIZE, SEED, torch.float64, torch.device("cpu"))
    noise_GD = torch.randn(NUM_IMAGES, SIZE, dtype=torch.float64, generator=generator)
    unit_GD = F.normalize(F.normalize(weight_CD[label_G]) + 0.3 * noise_GD)
    unit_GD[-2:] *= -1  # beyond θ + m = π
    return unit_GD * torch.linspace(0.5, 8, NUM_IMAGES, dtype=torch.float64)[:, None], label_G


def train(margin, sample_rate):
    head = PartialFC(
        NUM_CLASSES,
        SIZE,
        margin,
        images_per_class=np.arange(1, NUM_CLASSES + 1),
        sample_rate=sample_rate,
        optimizer=PLAIN,
        dtype=torch.float64,
        seed=SEED,
    )
    batches = (global_batch(step) for step in range(NUM_STEPS))
    losses, gradients, kept = take_steps(head, batches, LR)
    state = {name: t.numpy() for name, t in head.sharded_state().items()}
    state |= {name: t.numpy() for name, t in head.replicated_state().items()}
    return losses, gradients, kept, state


def image_numbers(num_ranks):
    """What is drawn for an image depends on its rank, and on its place there."""
    return torch.cat([torch.arange(NUM_IMAGES // num_ranks) + (r << 32) for r in range(num_ranks)])


def repeat_densely(margin, margin_C, kept):
    """The same steps on one dense matrix, with torch's autograd."""
    weight_CD = initial_centres(range(NUM_CLASSES), SIZE, SEED, torch.float64, torch.device("cpu"))
    weight_CD.requires_grad_()
    losses, gradients, state = [], [], {}
    for step in range(NUM_STEPS):
        embedding_GD, label_G = global_batch(step)
        embedding_GD.requires_grad_()
        m_G = margin_C[label_G]
        if hasattr(margin, "draw"):
            target_G = F.cosine_similarity(embedding_GD, weight_CD[label_G]).detach()
            numbers_G = image_numbers(len(kept))
            m_G = margin.draw(Images(target_G, m_G, None, mix64(SEED, step), numbers_G))
        kept_C = torch.zeros(NUM_CLASSES, dtype=torch.bool)
        kept_C[[c for part in kept for c in part[step]]] = True
        loss, state = margin_loss(margin, embedding_GD, weight_CD, label_G, m_G, state, kept_C)
        weight_CD.grad = None
        loss.backward()
        with torch.no_grad():
            weight_CD -= LR * weight_CD.grad
        losses.append(loss.item())
        gradients.append(embedding_GD.grad.numpy())
    return losses, gradients, weight_CD.detach().numpy(), state


@pytest.mark.parametrize(("num_ranks", "sample_rate"), [(0, 1.0), (1, 0.2), (3, 1.0), (4, 0.3)])
@PARAMETRIZE
def test_equals_the_paper_on_any_number_of_ranks(name, num_ranks, sample_rate):
    margin = MARGINS[name]
    results = run_on_ranks(num_ranks, train, margin, sample_rate)
    kept = [kept for _, _, kept, _ in results]
    margin_C = np.concatenate([state["margin"] for *_, state in results])
    losses, gradients, weight, state = repeat_densely(
        margin, torch.from_numpy(margin_C).double(), kept
    )
    for own_losses, _, _, own_state in results:
        np.testing.assert_allclose(own_losses, losses, **EXACT)
        if isinstance(margin, AdaFace):
            np.testing.assert_allclose(own_state["margin.norm_mean"], state["mean"], **EXACT)
            np.testing.assert_allclose(own_state["margin.norm_std"], state["std"], **EXACT)
        if isinstance(margin, CurricularFace):
            np.testing.assert_allclose(own_state["margin.hardness"], state["t"], **EXACT)
    for step in range(NUM_STEPS):
        ours = np.concatenate([own[step] for _, own, *_ in results])
        np.testing.assert_allclose(ours, gradients[step], **EXACT)
    ours = np.concatenate([state["weight"] for *_, state in results])
    np.testing.assert_allclose(ours, weight, **EXACT)
    if isinstance(margin, MagFace):
        # The norm's own gradient: without it every embedding gradient is orthogonal to it.
        embedding_GD = global_batch(0)[0].numpy()
        radial = (gradients[0] * embedding_GD).sum(axis=1) / np.linalg.norm(embedding_GD, axis=1)
        assert np.abs(radial).max() > 1e-3
        assert np.abs(radial[embedding_GD.shape[0] - 1]) < 1e-12  # a norm above upper_norm


@PARAMETRIZE
def test_gradcheck_of_embeddings_through_the_head(name):
    """With averages held still: the papers' gradients do not pass through them."""
    frozen = {"norm_decay": 1.0, "cosine_decay": 1.0}
    fields = {field.name for field in dataclasses.fields(MARGINS[name])}
    held = {key: value for key, value in frozen.items() if key in fields}
    margin = dataclasses.replace(MARGINS[name], scale=8.0, **held)
    embedding_GD, label_G = (x[:5] for x in global_batch(7))
    norm_G1 = embedding_GD.norm(dim=1, keepdim=True)

    def loss(raw_GD):
        if isinstance(margin, AdaFace):  # takes the norm as a constant
            raw_GD = F.normalize(raw_GD) * norm_G1
        head = PartialFC(NUM_CLASSES, SIZE, margin, dtype=torch.float64, seed=SEED)
        for tensor in head.replicated_state().values():
            tensor.fill_(0.4)
        return head(raw_GD, label_G)

    assert torch.autograd.gradcheck(loss, (embedding_GD.requires_grad_(),), atol=1e-6)


@pytest.mark.parametrize("name", ["arcface", "curricularface", "magface"])
def test_micro_batches_of_a_margin_with_state_add_up(name):
    """Two micro-batches in one step, whose running values are those of the step before."""
    head = PartialFC(NUM_CLASSES, SIZE, MARGINS[name], dtype=torch.float64, seed=SEED)
    weight_CD = head.weight_KD.clone().requires_grad_()
    total = 0.0
    margin_G = torch.full((NUM_IMAGES,), MARGINS[name].class_margin, dtype=torch.float64)
    kept_C = torch.ones(NUM_CLASSES, dtype=torch.bool)
    for step in range(2):
        embedding_GD, label_G = global_batch(step)
        (head(embedding_GD.clone().requires_grad_(), label_G) / 2).backward()
        loss, _ = margin_loss(MARGINS[name], embedding_GD, weight_CD, label_G, margin_G, {}, kept_C)
        total = total + loss / 2
    total.backward()
    torch.testing.assert_close(head.weight_gradient(), weight_CD.grad, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changed_negatives_in_the_cache_and_beside_the_filter(dtype):
    """What the first pass keeps has the slopes in it; a filtered negative stays away."""
    gradients = []
    for cache_bytes in (0, 1 << 20):
        head = PartialFC(
            NUM_CLASSES,
            SIZE,
            MARGINS["curricularface"],
            dtype=dtype,
            logit_cache_bytes=cache_bytes,
            filter_threshold=0.6,
            seed=SEED,
        )
        embedding_GD, label_G = global_batch(0)
        loss = head(embedding_GD.float().requires_grad_(), label_G)
        loss.backward()
        gradients.append(head.weight_gradient())
    # bf16 keeps 8 bits of each share.
    assert (gradients[1] - gradients[0]).norm() < 4e-3 * gradients[0].norm()
    weight_CD = head.weight_KD.double()
    cosine_GC = F.normalize(embedding_GD) @ F.normalize(weight_CD).T
    kept_GC = (cosine_GC <= 0.6) | F.one_hot(label_G, NUM_CLASSES).bool()
    expected, _ = margin_loss(
        head.margin,
        embedding_GD,
        weight_CD,
        label_G,
        torch.full_like(cosine_GC[:, 0], 0.5),
        {},
        kept_GC,
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert abs(loss.item() / expected.item() - 1) < tolerance
    assert not kept_GC.all()


def test_curricular_logits_at_their_largest_do_not_overflow():
    """A negative at cosine 1 with t = 1 has logit 2 s = 128, beyond fp32's exp."""
    margin = CurricularFace(cosine_decay=1.0)
    head = PartialFC(4, SIZE, margin)
    head.weight_KD.copy_(F.normalize(head.weight_KD[:1]).repeat(4, 1))
    head.class_margins.state["hardness"].fill_(1.0)
    embedding_BD = head.weight_KD[:1].clone().requires_grad_()
    loss = head(embedding_BD, torch.tensor([0]))
    loss.backward()
    expected = np.log(3) + 128 - 64 * np.cos(0.5)
    assert abs(loss.item() - expected) < 1e-4
    assert head.weight_gradient().isfinite().all()
    with pytest.raises(ValueError, match=r"margin\.scale is 65\.0: it must be above 0 and at most"):
        PartialFC(4, SIZE, CurricularFace(scale=65.0))


@PARAMETRIZE
def test_trains_the_tiny_backbone(name):
    """Eight made-up identities: the loss halves, and every image comes to its own centre."""
    torch.manual_seed(0)
    image_B3HW = torch.randn(8, 3, 32, 32).repeat(2, 1, 1, 1)
    image_B3HW += 0.3 * torch.randn(image_B3HW.shape)
    label_B = torch.arange(8).repeat(2)
    backbone = build_backbone("tiny", embedding_size=32, image_size=32)
    margin = dataclasses.replace(MARGINS[name], scale=16.0)
    head = PartialFC(8, 32, margin, optimizer=SGDRows(weight_decay=0.0))
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = head(backbone(image_B3HW), label_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        head.step(0.05)
        losses.append(loss.item())
    cosine_BC = F.normalize(backbone(image_B3HW)) @ F.normalize(head.weight_KD).T
    assert losses[-1] < 0.5 * losses[0]
    assert (cosine_BC.argmax(dim=1) == label_B).double().mean() > 0.9
    if isinstance(margin, KappaFace):
        head.end_epoch()
        assert head.class_margins.statistics.kappa_K.isfinite().all()
