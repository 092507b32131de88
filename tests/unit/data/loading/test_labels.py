"""Which of its labels an image has in an epoch, through the loader that training reads."""

import numpy as np
import pytest
import scipy.stats
import torch

from kappaface_dist.data.loading.labels import Labels
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.loading.sampler import Shuffle
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.label_vectors import with_all_labels
from tests.processes import run_on_ranks
from tests.unit.data.made_records import write_vectors

NUM_IMAGES, NUM_LABELS, SEED = 24, 3, 5
# The label tells the image and its place among the image's.
LABELS = np.arange(NUM_IMAGES)[:, None] * NUM_LABELS + np.arange(NUM_LABELS)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_vectors(tmp_path_factory.mktemp("labels") / "x.rec", LABELS.tolist())


def batches_of(path, how, batch_size, position, num_steps, with_slots=False, **options):
    catalog = with_all_labels(open_catalog(path, any_labels=True), how)
    loader = build_loader(
        catalog,
        loader="cpu",
        batch_size=batch_size,
        image_size=16,
        num_threads=1,
        seed=SEED,
        device=torch.device("cpu"),
        labels=how,
        with_slots=with_slots,
        **options,
    )
    return [(b.label_B.numpy(), b.slot_B) for b in loader.batches(position, num_steps)]


def labels_of(*arguments):
    return np.concatenate([label for label, _ in batches_of(*arguments)])


def test_what_is_drawn_is_the_same_on_any_number_of_ranks_and_from_any_place(path):
    whole = labels_of(path, "draw", 12, 0, 10)
    order = Shuffle(NUM_IMAGES, SEED).indices(0, len(whole))
    np.testing.assert_array_equal(whole // NUM_LABELS, order)
    np.testing.assert_array_equal(labels_of(path, "draw", 12, 36, 7), whole[36:])
    parts = run_on_ranks(2, labels_of, path, "draw", 6, 0, 10)
    joined = np.stack([part.reshape(10, 6) for part in parts], axis=1).reshape(-1)
    np.testing.assert_array_equal(joined, whole)


def test_each_label_is_drawn_as_often_as_another_and_anew_in_each_epoch(path):
    num_epochs = 200
    catalog = with_all_labels(open_catalog(path, any_labels=True), "draw")
    labels = Labels(catalog, "draw", SEED, with_slots=False)
    image = Shuffle(NUM_IMAGES, SEED).indices(0, num_epochs * NUM_IMAGES)
    drawn = labels.of(image, np.arange(len(image)) // NUM_IMAGES)[0] % NUM_LABELS
    counts = np.bincount(drawn, minlength=NUM_LABELS)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    # An image's in one epoch say nothing of those in the next.
    by_image = np.empty((num_epochs, NUM_IMAGES), dtype=int)
    by_image[np.arange(len(drawn)) // NUM_IMAGES, image] = drawn
    pairs = np.histogram2d(by_image[:-1].ravel(), by_image[1:].ravel(), bins=NUM_LABELS)[0]
    assert scipy.stats.chi2_contingency(pairs).pvalue > 1e-3
    assert (by_image.min(axis=0) == 0).all() & (by_image.max(axis=0) == NUM_LABELS - 1).all()


def test_all_labels_of_an_image_stand_beside_each_other_with_their_numbers(path, tmp_path):
    label = labels_of(path, "mean", 12, 0, 3)
    order = Shuffle(NUM_IMAGES, SEED).indices(0, 36)
    np.testing.assert_array_equal(label, LABELS[order])
    two = write_vectors(tmp_path / "two.rec", [[0, 1], [1, 0], [1, 2], [2, 0]])
    found = {}
    for how in ("draw", "mean"):
        for label, slot_B in batches_of(two, how, 4, 0, 6, True, augment="none"):
            assert slot_B.dtype == torch.int32
            assert slot_B.shape == label.shape
            for pair in zip(label.ravel().tolist(), slot_B.flatten().tolist(), strict=True):
                found.setdefault(how, set()).add(pair)
    # Every (class, number in it) once: three images of each class but the last, which has two.
    assert found["mean"] == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)}
    assert found["draw"] <= found["mean"]
