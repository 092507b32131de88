"""The image stream: every image once an epoch, and as random as numpy's."""

import itertools

import numpy as np
import pytest
from scipy import stats

from kappaface_dist.data.loading.sampler import Shuffle


@pytest.mark.parametrize("num_images", [1, 2, 3, 10, 4096, 4097, 5041, 100_003, 262_144])
def test_every_epoch_is_a_permutation(num_images):
    shuffle = Shuffle(num_images, seed=1)
    for epoch in (0, 1, 7):
        order = shuffle.indices(epoch * num_images, num_images)
        np.testing.assert_array_equal(np.sort(order), np.arange(num_images))


def test_the_stream_does_not_depend_on_how_it_is_read():
    shuffle = Shuffle(50_000, seed=5)
    whole = shuffle.indices(49_000, 60_000)
    pieces = [shuffle.indices(49_000 + i, 1_000) for i in range(0, 60_000, 1_000)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))


def test_the_order_never_changes_between_versions():
    # A run begun with an older version must be resumable: these numbers are a promise.
    assert Shuffle(10, seed=0).indices(0, 10).tolist() == [6, 0, 3, 4, 9, 7, 1, 2, 5, 8]
    assert Shuffle(1_000_000, seed=0).indices(0, 6).tolist() == [
        835595,
        985866,
        446320,
        141949,
        138737,
        683564,
    ]


@pytest.mark.parametrize("num_images", [5, 12, 5_000])
def test_every_image_is_equally_likely_at_every_place(num_images):
    num_epochs = 2_000
    shuffle = Shuffle(num_images, seed=11)
    places = range(min(num_images, 12))
    for place in places[::5]:
        drawn = [int(shuffle.indices(e * num_images + place, 1)[0]) for e in range(num_epochs)]
        bins = np.bincount(np.array(drawn) * places.stop // num_images, minlength=len(places))
        widths = np.bincount(np.arange(num_images) * places.stop // num_images)
        # Some 10 of these tests are made: one chance in 1e5 each.
        assert stats.chisquare(bins, widths * num_epochs / num_images).pvalue > 1e-5


def test_neighbours_are_unrelated():
    num_images = 100_003
    order = Shuffle(num_images, seed=2).indices(0, num_images)
    expected = 1 / np.sqrt(num_images)
    for other in (order[:-1], np.arange(num_images - 1)):
        assert abs(np.corrcoef(order[1:], other)[0, 1]) < 5 * expected
    second = Shuffle(num_images, seed=2).indices(num_images, num_images)
    other_seed = Shuffle(num_images, seed=3).indices(0, num_images)
    for other in (second, other_seed):
        assert abs(np.corrcoef(order, other)[0, 1]) < 5 * expected
    # A random permutation has one fixed point and one ascending neighbour pair on average.
    assert np.count_nonzero(order == np.arange(num_images)) < 10
    assert np.count_nonzero(np.diff(order) == 1) < 10


@pytest.mark.parametrize(
    ("num_images", "block"), [(1, 4), (100, 7), (5_000, 16), (100_003, 100), (64 * 50, 50)]
)
def test_block_shuffle_is_a_permutation_however_it_is_read(num_images, block):
    shuffle = Shuffle(num_images, seed=1, block=block)
    for epoch in (0, 3):
        order = shuffle.indices(epoch * num_images, num_images)
        np.testing.assert_array_equal(np.sort(order), np.arange(num_images))
    whole = shuffle.indices(num_images // 2, num_images)
    cuts = np.linspace(0, num_images, 14).astype(int)
    pieces = [
        shuffle.indices(num_images // 2 + int(start), int(end - start))
        for start, end in itertools.pairwise(cuts)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_block_shuffle_reads_few_blocks_at_a_time_and_mixes_them():
    num_images, block = 100_000, 100
    order = Shuffle(num_images, seed=1, block=block).indices(0, num_images)
    window = order[: 64 * block]
    assert len(np.unique(window // block)) == 64
    # Within the window neighbours are unrelated, and the blocks come from everywhere.
    assert np.abs(np.corrcoef(window[1:], window[:-1])[0, 1]) < 5 / np.sqrt(len(window))
    assert np.std(np.unique(window // block)) > 200
    second = Shuffle(num_images, seed=1, block=block).indices(num_images, 64 * block)
    assert len(np.intersect1d(window // block, second // block)) < 30
