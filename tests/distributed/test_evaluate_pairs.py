"""Verification by several ranks: one result, to the last bit, whatever their number."""

import numpy as np
import pytest
import torch

from kappaface_dist.backbones import build_backbone
from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.evaluation.one_to_one.pairs import evaluate_pairs
from kappaface_dist.evaluation.sets.pair_file import PairFile
from kappaface_dist.parallel import ranks as parallel
from tests.processes import run_on_ranks


def make_pairs(num_pairs):
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (2 * num_pairs, 4, 4, 3), dtype=np.uint8)
    payloads = [encode_jpeg(image.repeat(4, 0).repeat(4, 1)) for image in coarse]
    return PairFile(payloads, generator.random(num_pairs) < 0.5)


def _evaluate(pairs, batch_size):
    torch.manual_seed(0)
    model = build_backbone("tiny", embedding_size=16, image_size=16)
    own = []
    result = evaluate_pairs(
        model,
        pairs,
        image_size=16,
        batch_size=batch_size,
        device=torch.device("cpu"),
        progress=own.append,
    )
    assert model.training
    return result.distance_P, result.summary(), sum(own)


# 7 batches of 8 images and one of 4; with batches of 32, the last of 3 ranks has no work.
@pytest.mark.parametrize("batch_size", [8, 32])
def test_any_number_of_ranks_gives_the_same_bits(batch_size):
    pairs = make_pairs(30)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have
    expected_P, summary, num_images = run_on_ranks(0, _evaluate, pairs, batch_size)[0]
    torch.set_num_threads(threads)
    assert num_images == 60
    for num_ranks in (1, 2, 3):
        results = run_on_ranks(num_ranks, _evaluate, pairs, batch_size)
        for distance_P, found, _ in results:
            np.testing.assert_array_equal(distance_P, expected_P)
            assert found == summary
        shares = [own for *_, own in results]
        assert sum(shares) == 60
        assert max(shares) - min(shares) <= batch_size


def _broken(pairs):
    try:
        _evaluate(pairs, 8)
    except ValueError as error:
        return parallel.rank(), str(error)


def test_a_broken_image_ends_every_rank():
    pairs = make_pairs(30)
    pairs.payloads[59] = b"broken"  # in the last rank's share
    results = run_on_ranks(3, _broken, pairs)
    assert [rank for rank, _ in results] == [0, 1, 2]
    assert all(message.startswith("image 2 of pair 29: not a readable") for _, message in results)
