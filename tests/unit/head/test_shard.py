"""Ownership of classes and their initial centres."""

import pytest
import torch

from kappaface_dist.head import shard
from kappaface_dist.head.shard import initial_centres, shard_classes

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_classes", [1, 5, 7, 8, 1000])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 7])
def test_the_partition_is_that_of_torch_chunk(num_classes, num_ranks):
    chunks = [chunk.tolist() for chunk in torch.arange(num_classes).chunk(num_ranks)]
    ours = [list(shard_classes(num_classes, rank, num_ranks)) for rank in range(num_ranks)]
    assert [part for part in ours if part] == chunks


@pytest.mark.parametrize("num_ranks", [2, 3, 5])
def test_initial_centres_do_not_depend_on_the_ranks(num_ranks):
    whole = initial_centres(range(5000), 8, 1, torch.float32, CPU)
    parts = [
        initial_centres(shard_classes(5000, rank, num_ranks), 8, 1, torch.float32, CPU)
        for rank in range(num_ranks)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_initial_centres_do_not_depend_on_the_cores(monkeypatch, num_threads):
    expected = initial_centres(range(900, 5000), 8, 1, torch.float32, CPU)
    monkeypatch.setattr(shard, "threads_per_rank", lambda: num_threads)
    found = initial_centres(range(900, 5000), 8, 1, torch.float32, CPU)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_initial_centres_differ_between_classes_and_seeds():
    first = initial_centres(range(3000), 8, 1, torch.float32, CPU)
    assert len(first.unique(dim=0)) == 3000
    assert not torch.equal(first, initial_centres(range(3000), 8, 2, torch.float32, CPU))
    assert abs(first.std().item() - 0.01) < 2e-4
