"""A step of the head never waits for the device: the meta device has no data to wait for.

Whatever would look at a value (.item(), boolean indexing, nonzero) is an error there. Drawing a
sample is not covered: the meta device has no random generator.
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
    ],
    ids=["plain", "bf16", "cache", "filter", "bf16 momentum", "adamw"],
)
def test_a_step_looks_at_no_value(margin, settings):
    take_steps(margin, **settings)


def test_looking_would_be_noticed():
    """Leaving out tiles has to know how many are left: once a step, as its docstring says."""
    with pytest.raises(NotImplementedError, match="no data"):
        take_steps(ArcFace(), skip_mass=0.1)
