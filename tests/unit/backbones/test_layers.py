"""Layers that several networks share."""

import pytest
import torch
from torch import nn

from kappaface_dist.backbones.layers import running_statistics_kept


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_a_pass_that_is_done_twice_counts_once(kind):
    norm, batch_BC = kind(8), torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    with running_statistics_kept(norm):
        found_BC = norm(batch_BC)
    expected_BC = (batch_BC - batch_BC.mean(0)) / (batch_BC.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(found_BC, expected_BC)
    assert not norm.running_mean.any()
    assert norm.num_batches_tracked == 0
    norm(batch_BC)
    torch.testing.assert_close(norm.running_mean, 0.1 * batch_BC.mean(0))
    assert norm.num_batches_tracked == 1
