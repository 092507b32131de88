"""Batches of odd shapes through the one gathered tensor of bytes, against dense float64."""

import pytest
import torch

from kappaface_dist.counter_random import mix64
from kappaface_dist.head import PartialFC
from kappaface_dist.head.margins import Images
from tests.dense_margins import MARGINS, margin_loss

C, SEED = 20, 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("num_images", "size"), [(1, 512), (1, 33), (1, 2), (3, 33), (2, 3)])
def test_any_number_of_images_of_any_size(num_images, size, dtype):
    """One image of 33 numbers: its label lies at no multiple of eight bytes."""
    for name, margin in MARGINS.items():
        head = PartialFC(C, size, margin, dtype=dtype, seed=SEED)
        generator = torch.Generator().manual_seed(size)
        embedding_GD = 4 * torch.randn(num_images, size, generator=generator)
        label_G = torch.randint(C, (num_images,), generator=generator)
        ours_GD = embedding_GD.clone().requires_grad_()
        loss = head(ours_GD, label_G)
        loss.backward()
        dense_GD = embedding_GD.double().requires_grad_()
        weight_CD = head.weight_KD.double()
        m_G = head.margins()[label_G].double()
        if hasattr(margin, "draw"):
            target_G = torch.cosine_similarity(dense_GD, weight_CD[label_G]).detach()
            m_G = margin.draw(Images(target_G, m_G, None, mix64(SEED, 0)))
        kept_C = torch.ones(C, dtype=torch.bool)
        expected, _ = margin_loss(margin, dense_GD, weight_CD, label_G, m_G, {}, kept_C)
        expected.backward()
        # bf16 operands: a logit of 64 is off by up to 64/256.
        tolerance = 2e-4 if dtype == torch.float32 else 0.3
        assert abs(loss.item() - expected.item()) < tolerance * max(1, expected.item()), name
        if dtype == torch.float32:
            error = (ours_GD.grad - dense_GD.grad).norm() / dense_GD.grad.norm()
            assert error < 1e-3, name


def test_views_with_odd_strides_are_gathered_too():
    """A column of a wider tensor, and every second label."""
    head = PartialFC(C, 33, MARGINS["adaface"], dtype=torch.float64)
    wide_GX, label_G = torch.randn(2, 70, dtype=torch.float64), torch.tensor([3, 19])
    for part in (slice(0, 1), slice(0, 2)):
        view_GD, view_G = wide_GX[part, 5:38], torch.stack([label_G, label_G], dim=1)[part, 0]
        copy = head(view_GD.clone(), view_G.clone())
        torch.testing.assert_close(head(view_GD, view_G), copy, rtol=0, atol=0)
