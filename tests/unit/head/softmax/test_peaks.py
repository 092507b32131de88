"""Logits that no one shift suits: few classes, all far away, at scales up to the largest."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kappaface_dist.head import ArcFace, CosFace, CurricularFace, NormFace, PartialFC
from kappaface_dist.head.softmax.settings import Softmax
from kappaface_dist.parallel import ranks as parallel
from tests.dense_margins import margin_loss
from tests.processes import run_on_ranks

SIZE = 8
MARGINS = {
    "arcface 64": ArcFace(),
    "arcface 100": ArcFace(scale=100.0),
    "normface 128": NormFace(scale=128.0),
    "cosface 80": CosFace(scale=80.0),
    "curricularface 64": CurricularFace(cosine_decay=0.0),
    "curricularface 32": CurricularFace(scale=32.0),
}


def test_two_classes_on_the_far_side():
    """Both centres at cosine -1: T = s (cos m - 2), the other logit is -s."""
    head = PartialFC(2, SIZE, ArcFace(scale=100.0))
    axis_D = torch.eye(SIZE)[0]
    head.weight_KD.copy_(axis_D.repeat(2, 1))
    embedding_BD = (-axis_D[None]).requires_grad_()
    loss = head(embedding_BD, torch.tensor([1]))
    loss.backward()
    distance = 100.0 * (1 - np.cos(0.5))
    assert abs(loss.item() - np.log1p(np.exp(distance))) < 1e-3
    assert abs(loss.item() - 12.24) < 5e-3
    assert embedding_BD.grad.isfinite().all()
    assert head.weight_gradient().isfinite().all()


@pytest.mark.parametrize("scale", [64.0, 100.0, 128.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_class_alone_has_no_loss_and_no_gradient(scale, sign):
    head = PartialFC(1, SIZE, ArcFace(scale=scale))
    embedding_BD = (sign * head.weight_KD).clone().requires_grad_()
    loss = head(embedding_BD, torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0
    assert not embedding_BD.grad.any()
    assert not head.weight_gradient().any()


def faces(num_classes):
    """(embeddings, labels, centres): images beside, across from, and between all the centres."""
    generator = torch.Generator().manual_seed(num_classes)
    centre_CD = torch.randn(num_classes, SIZE, generator=generator).double()
    centre_CD[:, 0] = 4.0  # all on one side of the sphere
    label_G = torch.arange(6) % num_classes
    towards_G1 = torch.tensor([1.0, -1.0, 0.2, -0.2, -1.0, 1.0])[:, None].double()
    noise_GD = 0.3 * torch.randn(6, SIZE, generator=generator).double()
    return F.normalize(towards_G1 * F.normalize(centre_CD[label_G]) + noise_GD), label_G, centre_CD


def own(num_classes, margin, options):
    embedding_GD, label_G, centre_CD = faces(num_classes)
    head = PartialFC(num_classes, SIZE, margin, **options)
    head.weight_KD.copy_(centre_CD[head.classes.start : head.classes.stop])
    for tensor in head.replicated_state().values():
        tensor.fill_(0.3)
    head.take_chunks_of(2)
    share = slice(*(6 // parallel.world_size() * (parallel.rank() + i) for i in (0, 1)))
    embedding_BD = embedding_GD[share].float().requires_grad_()
    loss = head(embedding_BD, label_G[share])
    loss.backward()
    gradient_BD = embedding_BD.grad / parallel.world_size()
    return loss.item(), gradient_BD.numpy(), head.weight_gradient().numpy()


@pytest.mark.parametrize("num_classes", [2, 3, 7])
@pytest.mark.parametrize(
    ("num_ranks", "options"),
    [
        (0, {}),
        (0, {"logit_cache_bytes": 1 << 20}),
        (0, {"logit_cache_bytes": 24}),
        (0, {"skip_mass": 1e-9}),
        (3, {}),
        (2, {"logit_cache_bytes": 1 << 20}),
    ],
    ids=["plain", "cache", "half a cache", "skip", "3 ranks", "2 ranks, cache"],
)
def test_equals_the_dense_head_at_any_scale(num_ranks, options, num_classes):
    embedding_GD, label_G, centre_CD = faces(num_classes)
    for name, margin in MARGINS.items():
        if "skip_mass" in options and margin.largest_cosine > 1:
            continue
        results = run_on_ranks(num_ranks, own, num_classes, margin, options)
        dense_GD = embedding_GD.clone().requires_grad_()
        weight_CD = centre_CD.clone().requires_grad_()
        m_G = torch.full((6,), margin.class_margin, dtype=torch.float64)
        kept_C = torch.ones(num_classes, dtype=torch.bool)
        expected, _ = margin_loss(margin, dense_GD, weight_CD, label_G, m_G, {"t": 0.3}, kept_C)
        expected.backward()
        for loss, _, _ in results:
            assert abs(loss - expected.item()) < 1e-5 * max(1.0, expected.item()), name
        ours = [np.concatenate([result[i] for result in results]) for i in (1, 2)]
        for found, wanted in zip(ours, (dense_GD.grad, weight_CD.grad), strict=True):
            # bf16 keeps 8 bits of what it keeps.
            tolerance = 1e-2 if "logit_cache_bytes" in options else 1e-4
            error = np.linalg.norm(found - wanted.numpy())
            assert error < tolerance * wanted.norm().item() + 1e-6, name


def test_one_shift_is_enough_for_the_published_scales():
    assert not Softmax(scale=64.0).needs_peaks
    assert not Softmax(scale=72.0).needs_peaks
    assert Softmax(scale=73.0).needs_peaks
    assert Softmax(scale=64.0, largest_cosine=2.0).needs_peaks
    assert not Softmax(scale=48.0, largest_cosine=2.0).needs_peaks
