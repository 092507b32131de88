"""The class statistics against draws from a known distribution, and what they must withstand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import ive

from kappaface_dist.head import KappaFace
from kappaface_dist.head.margins.concentration import ClassStatistics, concentration

SIZE, KAPPA = 512, 700.0  # of the fixture draws
CPU = torch.device("cpu")


def filled(count_C, embedding_GD, margin, cosine_G=None):
    """Statistics of one window in which class c shows its next count_C[c] embeddings."""
    count_C = torch.as_tensor(count_C)
    statistics = ClassStatistics(count_C, embedding_GD.shape[1], margin, CPU)
    label_G = torch.arange(len(count_C)).repeat_interleave(count_C)
    add(statistics, embedding_GD[: len(label_G)], label_G, cosine_G)
    return statistics


def add(statistics, embedding_GD, label_G, cosine_G=None):
    if cosine_G is None:
        cosine_G = torch.zeros(len(label_G))
    statistics.add(embedding_GD, cosine_G, label_G, torch.ones(len(label_G), dtype=torch.bool))


def around(num_classes, spread, counts, seed=0, size=32):
    """Embeddings of num_classes classes around random means, class after class."""
    generator = torch.Generator().manual_seed(seed)
    mean_CD = F.normalize(torch.randn(num_classes, size, generator=generator))
    mean_GD = mean_CD.repeat_interleave(torch.as_tensor(counts), dim=0)
    noise_GD = torch.randn(mean_GD.shape, generator=generator) / math.sqrt(size)
    return F.normalize(mean_GD + torch.as_tensor(spread).reshape(-1, 1) * noise_GD)


def test_the_closed_form_against_the_bessel_functions():
    """A_D(κ) = I_{D/2}(κ) / I_{D/2−1}(κ) is the exact mean resultant length."""
    kappa = np.array([50.0, 300.0, 700.0, 2000.0, 10_000.0])
    exact = ive(SIZE / 2, kappa) / ive(SIZE / 2 - 1, kappa)
    ours = concentration(torch.from_numpy(exact), SIZE)
    np.testing.assert_allclose(ours, kappa, rtol=3.4e-4)


# The standard error of each mean is below 0.4 % with these numbers of classes.
@pytest.mark.parametrize(
    ("n", "num_classes", "plugin_bias"),
    [(2, 1000, 2.47), (3, 1000, 1.74), (5, 1000, 1.38), (10, 500, 1.17), (100, 100, 1.02)],
)
def test_unbiased_where_the_plugin_overstates(draws, n, num_classes, plugin_bias):
    counts = [n] * num_classes
    means = []
    for estimator in ("unbiased", "plugin"):
        statistics = filled(counts, draws, KappaFace(estimator=estimator))
        statistics.refresh()
        means.append(statistics.kappa_K.double().mean().item() / KAPPA)
    assert abs(means[0] - 1) < 0.02
    assert abs(means[1] / plugin_bias - 1) < 0.02


def test_target_cosine_is_its_mean_over_the_window(draws):
    """Around the true mean, the mean cosine is the mean resultant length, even of two images."""
    counts = [2] * 2000
    margin = KappaFace(statistic="target_cosine")
    statistics = filled(counts, draws, margin, cosine_G=draws[:4000, 0])
    statistics.refresh()
    assert abs(statistics.kappa_K.double().mean().item() / KAPPA - 1) < 0.02
    per_class = sum(t.numel() * t.element_size() for t in statistics.state().values()) / 2000
    assert per_class == 12  # sum, weight, and the κ that any statistic keeps


def pairwise(vectors_ND, weight_N):
    """ρ² as the weighted mean cosine over all pairs of different images."""
    gram = vectors_ND @ vectors_ND.T * np.outer(weight_N, weight_N)
    weights = np.outer(weight_N, weight_N)
    np.fill_diagonal(gram, 0.0)
    np.fill_diagonal(weights, 0.0)
    return gram.sum() / weights.sum()


def kappa_of(squared, size):
    return squared**0.5 * (size - squared) / (1 - squared)


@pytest.mark.parametrize("decay", [0.0, 0.7, 0.95])
def test_decayed_windows_weight_pairs_by_age(decay):
    """Three windows of 4, 1 and 2 images: weights β^age, against the mean over pairs."""
    statistics = ClassStatistics(torch.tensor([7]), 32, KappaFace(decay=decay), CPU)
    embedding_GD = around(1, 0.8, [7])
    for window in (range(4), range(4, 5), range(5, 7)):
        add(statistics, embedding_GD[list(window)], torch.zeros(len(window), dtype=torch.int64))
        statistics.refresh()
    weight_N = np.array([decay**2] * 4 + [decay] + [1.0] * 2)
    expected = kappa_of(pairwise(embedding_GD.double().numpy(), weight_N), 32)
    assert abs(statistics.kappa_K.item() / expected - 1) < 1e-5


def test_shrinkage_draws_small_classes_to_the_mean():
    counts = torch.tensor([2, 10, 50, 1])
    embedding_GD = around(4, torch.tensor([0.2, 0.6, 1.0, 1.0]).repeat_interleave(counts), counts)
    plain, drawn = (filled(counts, embedding_GD, KappaFace(shrinkage=s)) for s in (0.0, 5.0))
    for statistics in (plain, drawn):
        statistics.refresh()
    starts = [0, 2, 12]
    squared = [
        pairwise(embedding_GD[i : i + n].double().numpy(), np.ones(n))
        for i, n in zip(starts, [2, 10, 50], strict=True)
    ]
    mean = np.mean(squared)
    for c, n in enumerate([2, 10, 50]):
        assert abs(plain.kappa_K[c].item() / kappa_of(squared[c], 32) - 1) < 1e-4
        expected = kappa_of((5 * mean + n * squared[c]) / (5 + n), 32)
        assert abs(drawn.kappa_K[c].item() / expected - 1) < 1e-4
    assert drawn.kappa_K[3].isnan()


def test_no_class_at_all_on_this_rank():
    statistics = ClassStatistics(torch.zeros(0, dtype=torch.int64), 32, KappaFace(), CPU)
    nothing = torch.zeros(2, dtype=torch.bool)
    statistics.add(torch.ones(2, 32), torch.zeros(2), torch.zeros(2, dtype=torch.int64), nothing)
    statistics.refresh()
    assert statistics.kappa_K.tolist() == []


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_classes_not_seen_again_keep_their_concentration(decay):
    """300 windows without an image: β^300 is below fp32's range, squared far below."""
    counts = torch.tensor([5, 6, 7])
    statistics = filled(counts, around(3, 0.8, counts), KappaFace(decay=decay))
    statistics.refresh()
    first = statistics.kappa_K.clone()
    for _ in range(300):
        statistics.refresh()
    torch.testing.assert_close(statistics.kappa_K, first, rtol=1e-5, atol=0)
    assert not statistics.sum_KX.any()
    assert not statistics.squared_weight_K.any()


def test_embeddings_that_are_not_unit_or_not_finite():
    """bf16 rounding is taken out; a bad image is left out, and costs its class nothing."""
    counts = torch.tensor([6, 6])
    embedding_GD = around(2, 0.8, counts)
    clean = filled(counts, embedding_GD, KappaFace())
    lengths = torch.linspace(0.9, 1.1, 12)[:, None]
    noisy = filled(counts, embedding_GD * lengths, KappaFace())
    add(noisy, torch.full((1, 32), torch.nan), torch.tensor([0]))
    for statistics in (clean, noisy):
        statistics.refresh()
    torch.testing.assert_close(noisy.kappa_K, clean.kappa_K, rtol=1e-5, atol=0)
