"""The rows that a step draws."""

import numpy as np
import pytest
import torch

from kappaface_dist.head.sampling import sample_rows, sample_size


def draw(num_rows, rate, seed, local_id=(3, 3, 7, 0), owned=(True, True, True, False)):
    return sample_rows(torch.tensor(local_id), torch.tensor(owned), num_rows, rate, seed)


@pytest.mark.parametrize(("num_rows", "rate"), [(10, 0.1), (1000, 0.1), (999, 0.37), (50, 0.9)])
def test_sorted_distinct_in_range_and_always_as_many(num_rows, rate):
    for seed in range(30):
        index_S, column_G = draw(num_rows, rate, seed)
        assert len(index_S) == sample_size(num_rows, rate, 4)
        rows = index_S.tolist()
        assert rows == sorted(set(rows))
        assert rows[0] >= 0
        assert rows[-1] < num_rows
        assert index_S[column_G[:3]].tolist() == [3, 3, 7]
        assert column_G[3] == -1


def test_every_row_comes_up_equally_often():
    num_rows, draws = 101, 20_000
    counts = np.zeros(num_rows)
    for seed in range(draws):
        index_S, _ = draw(num_rows, 0.2, seed, (3,), (True,))
        counts[index_S.numpy()] += 1
    share = np.delete(counts, 3) / draws
    # 21 drawn, and one more where 3 was among them; a share of 0.2 has a deviation of 0.0028.
    expected = (sample_size(num_rows, 0.2, 1) - 1) / (num_rows - 1)
    assert counts[3] == draws
    assert abs(share.mean() - expected) < 1e-9
    assert np.abs(share - expected).max() < 5 * 0.0029


def test_another_seed_draws_other_rows():
    first, second = (set(draw(10_000, 0.1, seed)[0].tolist()) for seed in (1, 2))
    assert 0.05 < len(first & second) / len(first) < 0.15
