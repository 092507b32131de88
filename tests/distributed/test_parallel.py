"""The collectives on real gloo groups, against what they say in plain arithmetic."""

import numpy as np
import pytest
import torch

from kappaface_dist.parallel import ranks as parallel
from tests.processes import run_on_ranks


def _collectives():
    rank, num_ranks = parallel.rank(), parallel.world_size()
    gathered = parallel.all_gather_rows(torch.full((2, 3), float(rank)))
    scattered = parallel.reduce_scatter_rows(torch.arange(num_ranks * 2.0)[:, None] + rank)
    summed = parallel.all_reduce_sum(torch.tensor([1.0 + rank]))
    largest = parallel.all_reduce_max(torch.tensor([rank]))
    share = list(parallel.even_share(7))
    return gathered.numpy(), scattered.numpy(), summed.item(), largest.item(), share


@pytest.mark.parametrize("num_ranks", [0, 1, 2, 3])
def test_collectives(num_ranks):
    results = run_on_ranks(num_ranks, _collectives)
    n = max(num_ranks, 1)
    for rank, (gathered, scattered, summed, largest, _) in enumerate(results):
        np.testing.assert_array_equal(gathered[:, 0], np.repeat(np.arange(n), 2))
        own_rows = np.arange(n * 2)[rank * 2 : rank * 2 + 2]
        np.testing.assert_array_equal(scattered[:, 0], own_rows * n + sum(range(n)))
        assert summed == sum(range(1, n + 1))
        assert largest == n - 1
    assert [i for *_, share in results for i in share] == list(range(7))


def _fails_on_last_rank():
    def work():
        if parallel.rank() == parallel.world_size() - 1:
            raise ValueError("data.train is nonsense")
        return 1

    try:
        parallel.agree(work)
    except ValueError as error:
        return str(error)


def test_one_ranks_error_is_raised_on_every_rank():
    assert run_on_ranks(3, _fails_on_last_rank) == ["data.train is nonsense"] * 3


def _order(path):
    def work():
        if parallel.rank() == 0:
            path.write_text("made")
        return path.read_text()

    return parallel.rank0_first(work)


def test_rank0_first(tmp_path):
    assert run_on_ranks(3, _order, tmp_path / "cache") == ["made"] * 3
