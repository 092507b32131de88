"""What the class statistics make of a stream of epochs: an image counts once.

Shapes: C classes, I images of the dataset, D embedding size, G images of a step.
"""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import vonmises_fisher

from kappaface_dist.head import KappaFace, PartialFC
from kappaface_dist.head.margins.class_margins import ClassMargins

CPU = torch.device("cpu")
SIZE = 512
COSINE_OF_VIEWS = 0.95
# ψ is 1 − sigmoid(T z) itself, and the margin ψ.
PLAIN = {"margin": 1.0, "concentration_share": 1.0}


class Photos:
    """A dataset whose every image looks different in every epoch.

    Classes with an even number have κ = 500, the others 900, around random means.
    """

    def __init__(self, count_C, seed=0):
        rng = np.random.default_rng(seed)
        self.count_C = np.asarray(count_C)
        self.label_I = torch.from_numpy(np.repeat(np.arange(len(count_C)), count_C))
        mean_CD = rng.normal(size=(len(count_C), SIZE))
        mean_CD /= np.linalg.norm(mean_CD, axis=1, keepdims=True)
        # scipy draws around the first axis; a reflection takes it to the class's mean.
        pole_D = np.eye(SIZE)[0]
        mirror_CD = pole_D - mean_CD
        mirror_CD /= np.linalg.norm(mirror_CD, axis=1, keepdims=True)
        drawn_ID = np.empty((len(self.label_I), SIZE))
        for odd, kappa in enumerate((500.0, 900.0)):
            here_I = self.label_I.numpy() % 2 == odd
            drawn_ID[here_I] = vonmises_fisher(pole_D, kappa, seed=rng).rvs(here_I.sum())
        mirror_ID = mirror_CD[self.label_I]
        drawn_ID -= 2 * (drawn_ID * mirror_ID).sum(axis=1, keepdims=True) * mirror_ID
        self.image_ID = torch.from_numpy(drawn_ID).float()

    def epoch(self, number):
        """(embeddings, labels) of an epoch in its order; two views of an image have cosine 0.95."""
        generator = torch.Generator().manual_seed(number)
        noise_ID = torch.randn(self.image_ID.shape, generator=generator)
        noise_ID -= (noise_ID * self.image_ID).sum(dim=1, keepdim=True) * self.image_ID
        noise_ID /= noise_ID.norm(dim=1, keepdim=True)
        view_ID = math.sqrt(COSINE_OF_VIEWS) * self.image_ID
        view_ID += math.sqrt(1 - COSINE_OF_VIEWS) * noise_ID
        order_I = torch.randperm(len(view_ID), generator=generator)
        return view_ID[order_I], self.label_I[order_I]


def train(photos, margin, batch, num_epochs):
    """The class margins after each epoch; batch None: 128, and no step in two epochs."""
    num_images = len(photos.label_I)
    classes = ClassMargins(
        margin, range(len(photos.count_C)), SIZE, photos.count_C, torch.float32, CPU
    )
    position, left = 0, [photos.epoch(0)]
    while position < num_epochs * num_images:
        epoch, first = divmod(position, num_images)
        size = batch or min(128, num_images - first)
        parts = []
        for later in range((first + size - 1) // num_images + 1):
            if later == len(left):
                left.append(photos.epoch(epoch + later))
            view_ID, label_I = left[later]
            here = slice(max(first - later * num_images, 0), first + size - later * num_images)
            label_G = label_I[here]
            parts.append((view_ID[here], label_G, torch.full_like(label_G, later).to(torch.int8)))
        view_GD, label_G, epoch_G = (torch.cat(part) for part in zip(*parts, strict=True))
        classes.start_step()
        classes.see(
            view_GD,
            torch.zeros(len(label_G)),
            label_G,
            torch.ones_like(label_G).bool(),
            {"epoch": epoch_G},
        )
        position += size
        for number in range(epoch, position // num_images):
            classes.end_epoch()
            left.pop(0)
            if number < num_epochs:
                yield classes


@pytest.fixture(scope="module")
def long_tail():
    """1,000 classes, 277 of them with one image, the others with 2 to 62."""
    tail = 2 + np.minimum(np.random.default_rng(0).pareto(1.2, 723) * 2, 60).astype(int)
    return Photos(np.concatenate([np.ones(277, int), tail]))


def expected_margins(view_ID, label_I, num_classes):
    """In float64, from one epoch: mean cosine of pairs -> κ -> 1 − sigmoid(T z); and κ."""
    view_ID, label_I = view_ID.double().numpy(), label_I.numpy()
    view_ID = view_ID / np.linalg.norm(view_ID, axis=1, keepdims=True)
    kappa = np.full(num_classes, np.nan)
    for c in range(num_classes):
        mine = view_ID[label_I == c]
        if len(mine) >= 2:
            cosine = mine @ mine.T
            squared = cosine[~np.eye(len(mine), dtype=bool)].mean().clip(0, 0.995**2)
            kappa[c] = squared**0.5 * (SIZE - squared) / (1 - squared)
    z = (kappa - np.nanmean(kappa)) / np.nanstd(kappa)
    return np.where(np.isnan(z), 0.5, 1 / (1 + np.exp(0.4 * z))), kappa


def test_an_image_counts_once_whatever_the_batch(long_tail):
    """Hard and easy classes differ by 0.197 ± 0.01 of w^κ, after one epoch or twenty."""
    num_classes = len(long_tail.count_C)
    single_C = long_tail.count_C == 1
    hard_C = np.arange(num_classes) % 2 == 0
    expected = {
        number: expected_margins(*long_tail.epoch(number - 1), num_classes) for number in (1, 20)
    }
    found = {}
    for batch, num_epochs in ((128, 20), (512, 5), (None, 5)):
        epochs = train(long_tail, KappaFace(**PLAIN), batch, num_epochs)
        for number, classes in enumerate(epochs, start=1):
            kappa_C, margin_C = classes.statistics.kappa_K.numpy(), classes.margin_K.numpy()
            assert np.isnan(kappa_C[single_C]).all(), (batch, number)
            assert np.isfinite(kappa_C[~single_C]).all()
            if number in (1, 5, 20):
                hard, easy = (margin_C[~single_C & kind].mean() for kind in (hard_C, ~hard_C))
                assert abs(hard - easy - 0.197) < 0.01, (batch, number)
            if number in expected:
                np.testing.assert_allclose(kappa_C, expected[number][1], rtol=1e-4)
                np.testing.assert_allclose(margin_C, expected[number][0], rtol=1e-4)
            if number == 5:
                found[batch] = margin_C.copy()
    # Sums of the same views in another order.
    np.testing.assert_allclose(found[128], found[None], rtol=1e-5)
    np.testing.assert_allclose(found[512], found[None], rtol=1e-5)


def test_decay_does_not_pass_views_for_photos():
    """Mean κ of classes of 2, 5 and 100 images, after 12 epochs, with a memory and without."""
    photos = Photos([1] * 50 + [2] * 300 + [5] * 120 + [100] * 10)
    means = {}
    for decay in (0.0, 0.9):
        *_, classes = train(photos, KappaFace(decay=decay), 512, 12)
        kappa_C = classes.statistics.kappa_K.double().numpy()
        assert np.isnan(kappa_C[:50]).all()
        means[decay] = [kappa_C[photos.count_C == n].mean() for n in (2, 5, 100)]
    np.testing.assert_allclose(means[0.9], means[0.0], rtol=0.05)
    np.testing.assert_allclose(means[0.9], 660, rtol=0.05)


def test_a_dataset_smaller_than_a_step():
    """Three epochs and a half in every step: each epoch ends a window of its own."""
    photos = Photos([1, 1, 2, 3, 5, 8])
    num_images = len(photos.label_I)
    seen = 0
    for number, classes in enumerate(train(photos, KappaFace(**PLAIN), 70, 7)):
        margin_C, kappa_C = expected_margins(*photos.epoch(number), 6)
        np.testing.assert_allclose(classes.statistics.kappa_K, kappa_C, rtol=1e-4)
        np.testing.assert_allclose(classes.margin_K, margin_C, rtol=1e-4)
        seen += 1
    assert (num_images, seen) == (20, 7)


@pytest.mark.parametrize("statistic", ["resultant", "target_cosine"])
@pytest.mark.parametrize("window", [{"decay": 0.9}, {"refresh_steps": 7}, {"refresh_steps": 2}])
@pytest.mark.parametrize("counted", [True, False])
def test_one_photo_is_never_measured_and_two_are(statistic, window, counted):
    """Class 0 has one photo and class 1 two, in epochs of one step; also with unknown counts."""
    counts = np.array([1, 2])
    margin = KappaFace(statistic=statistic, **window)
    head = PartialFC(2, 8, margin, images_per_class=counts if counted else None)
    generator = torch.Generator().manual_seed(0)
    image_3D = torch.randn(3, 8, generator=generator)
    for _ in range(14):
        view_3D = image_3D + 0.1 * torch.randn(3, 8, generator=generator)
        epoch_3 = torch.zeros(3, dtype=torch.int8)
        head(view_3D.requires_grad_(), torch.tensor([0, 1, 1]), epoch_3).backward()
        head.step(0.0)
        head.end_epoch()
    assert head.class_margins.statistics.kappa_K.isfinite().tolist() == [False, True]


def test_what_stands_in_for_another_image_does_not_count():
    """Class 0 shows one photo of its own, and once more in place of another's."""
    head = PartialFC(2, 8, KappaFace(), images_per_class=np.array([2, 2]))
    generator = torch.Generator().manual_seed(0)
    embedding_4D = torch.randn(4, 8, generator=generator)
    epoch_4 = torch.tensor([0, -1, 0, 0])
    head(embedding_4D.requires_grad_(), torch.tensor([0, 0, 1, 1]), epoch_4).backward()
    head.step(0.0)
    assert head.class_margins.statistics.weight_K.tolist() == [1.0, 2.0]
    for _ in range(3):
        head.end_epoch()
        assert head.class_margins.statistics.kappa_K.isfinite().tolist() == [False, True]
        assert head.class_margins.statistics.weight_K.tolist() == [0.0, 0.0]


def test_going_back_forgets_what_was_read_of_the_next_epoch():
    """A step left out in which an epoch ends: none of its images is in the next epoch's window."""
    head = PartialFC(2, 8, KappaFace(), images_per_class=np.array([2, 2]))
    before = head.counters()
    label_4, epoch_4 = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    head(torch.randn(4, 8).requires_grad_(), label_4, epoch_4).backward()
    head.discard()
    head.load_counters(before)
    head.end_epoch()
    assert head.class_margins.statistics.weight_K.tolist() == [0.0, 0.0]
    # Without going back they are.
    head(torch.randn(4, 8).requires_grad_(), label_4, epoch_4).backward()
    head.step(0.0)
    head.end_epoch()
    assert head.class_margins.statistics.weight_K.tolist() == [1.0, 1.0]


def test_checkpoints_of_earlier_versions():
    """The default margin's tensors are theirs; what they did not count is taken as the most."""
    head = PartialFC(3, 8, KappaFace())
    names = {"weight", "optimizer.momentum", "margin"}
    names |= {f"statistics.{n}" for n in ("sum", "weight", "squared_weight", "kappa")}
    assert head.sharded_state().keys() == names
    decayed = PartialFC(3, 8, KappaFace(decay=0.75))
    for one, weights in ((head, [1.0, 1.0]), (decayed, [4.0, 1.0])):
        one.load_counters({"num_draws": 5, "num_steps": 4, "num_refreshes": 2})
        assert one.counters()["epoch_weights"] == weights
    # The κ of one photo, which they took for a measurement, is forgotten at the next refresh.
    counted = PartialFC(3, 8, KappaFace(), images_per_class=np.array([1, 2, 2]))
    counted.class_margins.statistics.kappa_K.copy_(torch.tensor([10_000.0, 20.0, 30.0]))
    counted.end_epoch()
    kappa_K = counted.class_margins.statistics.kappa_K
    assert kappa_K[0].isnan()
    assert kappa_K[1:].tolist() == [20.0, 30.0]


@pytest.mark.parametrize("kind", [torch.tensor, list, lambda c: torch.tensor(c, dtype=torch.int32)])
def test_counts_may_be_a_tensor_or_a_list(kind):
    counts = [2, 30, 7]
    expected = PartialFC(3, 8, KappaFace(), images_per_class=np.array(counts)).margins()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = PartialFC(3, 8, KappaFace(), images_per_class=kind(counts)).margins()
    assert torch.equal(found, expected)
