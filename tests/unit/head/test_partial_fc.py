"""A step of the head never waits for the device, and what planning asks of a head.

The meta device has no data to wait for: whatever would look at a value (.item(), boolean indexing,
nonzero) is an error there. Drawing a sample is not covered: it has no random generator.
"""

import pytest
import torch

from kappaface_dist.head import (
    AdaFace,
    AdamWRows,
    ArcFace,
    CurricularFace,
    KappaFace,
    MagFace,
    PartialFC,
    SGDRows,
)

META = torch.device("meta")


def take_steps(margin, **settings):
    head = PartialFC(5000, 64, margin, device=META, **settings)
    for step in range(2):
        head.rank_one.start()
        for _ in range(2):  # micro-batches
            embedding_BD = torch.randn(32, 64, device=META, requires_grad=True)
            loss = head(embedding_BD, torch.zeros(32, dtype=torch.int64, device=META))
            loss.backward()
        skip = torch.zeros((), dtype=torch.bool, device=META) if step else None
        head.step(0.1, loss_scale=torch.ones((), device=META), skip=skip)


@pytest.mark.parametrize(
    "margin",
    [ArcFace(), KappaFace(), AdaFace(), MagFace(), CurricularFace()],
    ids=lambda margin: type(margin).__name__,
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dtype": torch.bfloat16, "split_centres": True},
        {"logit_cache_bytes": 1 << 20, "chunk_bytes": 1 << 16},
        {"filter_threshold": 0.4},
        {"optimizer": SGDRows(momentum_dtype=torch.bfloat16)},
        {"optimizer": AdamWRows()},
        {"sub_centres": 3},
    ],
    ids=["plain", "bf16", "cache", "filter", "bf16 momentum", "adamw", "sub-centres"],
)
def test_a_step_looks_at_no_value(margin, settings):
    take_steps(margin, **settings)


def test_looking_would_be_noticed():
    """Leaving out tiles has to know how many are left: once a step, as its docstring says."""
    with pytest.raises(NotImplementedError, match="no data"):
        take_steps(ArcFace(), skip_mass=0.1)


def loss_of(head, num_images=32):
    generator = torch.Generator().manual_seed(0)
    embedding_BD = torch.randn(num_images, 64, generator=generator).requires_grad_()
    label_B = torch.randint(300, (num_images,), generator=generator)
    return head(embedding_BD, label_B)


def test_the_chunks_are_as_long_as_asked_for_and_change_nothing():
    """A cache with room for 100 rows keeps nothing of a chunk of 300."""
    losses, held = [], []
    for num_rows in (100, 300):
        head = PartialFC(300, 64, ArcFace(), logit_cache_bytes=2 * 32 * 100)
        head.take_chunks_of(num_rows)
        losses.append(loss_of(head))
        losses[-1].backward()
        held.append(head.held_cache_bytes())
    assert held == [2 * 32 * 100, 0]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)


def test_the_logit_caches_are_held_from_a_loss_to_its_step():
    head = PartialFC(300, 64, ArcFace(), logit_cache_bytes=1 << 20)
    assert head.held_cache_bytes() == 0
    for num_losses in (1, 2):
        loss_of(head).backward()
        assert head.held_cache_bytes() == num_losses * 2 * 32 * 300
    loss_of(head)  # never differentiated
    assert head.held_cache_bytes() == 2 * 2 * 32 * 300
    head.step(0.1)
    assert head.held_cache_bytes() == 0
