"""The budget of the logit cache holds for all micro-batches of a step together."""

import pytest
import torch

from kappaface_dist.head import ArcFace, PartialFC
from kappaface_dist.head.softmax.logit_cache import LogitCache
from kappaface_dist.head.softmax.rows import Rows


@pytest.mark.parametrize("budget", [0, 1, 5_000, 8_000, 12_345, 1 << 20])
def test_micro_batches_hold_no_more_than_the_budget(budget):
    """Of a budget of 2.6 chunks the first micro-batch used to hold all and use two."""
    gradients = []
    for cache_bytes in (0, budget):
        head = PartialFC(300, 16, ArcFace(scale=20.0), logit_cache_bytes=cache_bytes)
        head.take_chunks_of(70)
        generator = torch.Generator().manual_seed(0)
        for size in (22, 5, 40):
            embedding_BD = torch.randn(size, 16, generator=generator).requires_grad_()
            head(embedding_BD, torch.arange(size)).backward()
            assert head.held_cache_bytes() <= cache_bytes
        gradients.append(head.weight_gradient())
    assert (gradients[1] - gradients[0]).norm() <= 2**-8 * gradients[0].norm()


@pytest.mark.parametrize(("budget", "kept"), [(2 * 4 * 25, [0, 10]), (2 * 4 * 30, [0, 10, 20])])
def test_holds_whole_chunks_and_takes_memory_for_these_alone(budget, kept):
    rows, cache = Rows(torch.zeros(35, 3)), LogitCache(budget)
    assert cache.held_bytes == 0
    for first, last in rows.chunks(10):
        place = cache.place(4, rows, first, last)
        assert (place is not None) == (first in kept)
    assert cache.held_bytes == 2 * 4 * 10 * len(kept)
    whole = LogitCache(1 << 20)
    places = [whole.place(4, rows, *chunk) for chunk in rows.chunks(10)]
    assert [place.shape[1] for place in places] == [10, 10, 10, 5]
    assert whole.held_bytes == 2 * 4 * 35
