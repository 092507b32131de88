"""The class statistics against draws from a known distribution, and what they must withstand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import ive
from scipy.stats import vonmises_fisher

from kappaface_dist.head import KappaFace
from kappaface_dist.head.margins.concentration import ClassStatistics, concentration

SIZE, KAPPA = 512, 700.0
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def draws():
    """10,000 unit vectors from scipy's von Mises-Fisher sampler, all around one mean."""
    mean = np.eye(SIZE)[0]
    sample = vonmises_fisher(mean, KAPPA, seed=np.random.default_rng(0)).rvs(10_000)
    return torch.from_numpy(sample).float()


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


def test_class_size_does_not_pass_for_concentration(draws):
    """A long tail of equal κ: the published estimate gives small classes less margin."""
    rng = np.random.default_rng(1)
    counts = np.minimum(2 + rng.pareto(1.0, 3000) * 2, 150).astype(np.int64)
    pool = torch.cat([draws[torch.from_numpy(rng.permutation(len(draws)))] for _ in range(5)])
    correlation = {}
    for estimator in ("unbiased", "plugin"):
        margin = KappaFace(estimator=estimator, concentration_share=1.0)
        statistics = filled(counts, pool, margin)
        statistics.refresh()
        psi = statistics.psi().numpy()
        correlation[estimator] = np.corrcoef(psi, np.log(counts))[0, 1]
    assert abs(correlation["unbiased"]) < 0.05
    assert correlation["plugin"] > 0.6


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


def expected_psi(kappa, count, margin):
    """The page of the design, in numpy, for classes that are all measured."""
    z = (kappa - kappa.mean()) / kappa.std()
    hard = 1 - 1 / (1 + np.exp(-margin.temperature * z))
    rare = (1 + np.cos(np.pi * count / (margin.count_scale * count.max()))) / 2
    return margin.concentration_share * hard + (1 - margin.concentration_share) * rare


@pytest.mark.parametrize(
    "margin", [KappaFace(), KappaFace(count_scale=1.05, concentration_share=0.3, temperature=2.0)]
)
def test_psi_against_numpy(margin):
    counts = np.arange(2, 42)
    spread = torch.linspace(0.3, 1.2, 40).flip(0).repeat_interleave(torch.from_numpy(counts))
    statistics = filled(counts, around(40, spread, counts), margin)
    statistics.refresh()
    kappa = statistics.kappa_K.double().numpy()
    np.testing.assert_allclose(statistics.psi(), expected_psi(kappa, counts, margin), rtol=1e-12)
    margins = statistics.margins(refreshed=True)
    np.testing.assert_allclose(margins, 0.8 * statistics.psi(), rtol=1e-6)
    assert margins.max() / margins.min() > 1.2


def test_before_the_first_refresh():
    counts = np.array([1, 10, 100])
    neutral, one = (filled(counts, around(3, 1.0, counts), m) for m in (KappaFace(), RELEASED))
    rare = (1 + np.cos(np.pi * counts / 100)) / 2
    expected = 0.8 * (0.7 * 0.5 + 0.3 * rare)
    np.testing.assert_allclose(neutral.margins(refreshed=False), expected, rtol=1e-6)
    assert abs(neutral.margins(refreshed=False)[0].item() - 0.52) < 0.001
    assert one.margins(refreshed=False).tolist() == pytest.approx([0.8] * 3)


RELEASED = KappaFace(first_window="one")
COUNTS = torch.arange(2, 52)


def others(margin, extra):
    """Margins of 50 sound classes, with the classes of extra (embeddings) beside them."""
    spread = torch.linspace(0.3, 1.2, 50).repeat_interleave(COUNTS)
    embedding_GD = torch.cat([around(50, spread, COUNTS), *extra])
    counts = torch.cat([COUNTS, torch.tensor([len(e) for e in extra], dtype=torch.int64)])
    statistics = filled(counts, embedding_GD, margin)
    statistics.refresh()
    return statistics.margins(refreshed=True)


@pytest.mark.parametrize("estimator", ["unbiased", "plugin"])
@pytest.mark.parametrize(
    ("what", "extra"),
    [
        ("one image", [around(1, 1.0, [1], seed=5)] * 3),
        ("identical images", [around(1, 0.0, [3], seed=5), around(1, 0.0, [7], seed=6)]),
        ("unseen", [torch.zeros(0, 32)] * 2),
    ],
)
def test_degenerate_classes_leave_the_others_alone(estimator, what, extra):
    margin = KappaFace(estimator=estimator)
    plain = others(margin, [])
    beside = others(margin, extra)
    torch.testing.assert_close(beside[:50], plain, rtol=1e-6, atol=0)
    odd = beside[50:]
    assert odd.isfinite().all()
    assert ((odd > 0) & (odd <= 0.8)).all()
    if what == "identical images":
        assert (odd < plain.min() + 0.3 * 0.8).all()  # as easy as a class can be
    else:
        count = torch.tensor([len(e) for e in extra])
        rare = (1 + torch.cos(math.pi * count / COUNTS.max())) / 2
        torch.testing.assert_close(odd, (0.8 * (0.35 + 0.3 * rare)).float())


def test_all_classes_degenerate_are_neutral():
    embedding_GD = around(3, 0.0, [4, 4, 4])
    statistics = filled([4, 4, 4], embedding_GD, KappaFace())
    statistics.refresh()
    assert statistics.margins(refreshed=True).tolist() == pytest.approx([0.28] * 3)


def test_a_collapsed_class_keeps_some_margin(draws):
    """Its κ lies hundreds of deviations from the others': unbounded, ψ would be 0 in fp32."""
    counts = [20] * 31
    embedding_GD = torch.cat([draws[:600], draws[:1].repeat(20, 1)])
    margin = KappaFace(concentration_share=1.0, temperature=2.0)
    statistics = filled(counts, embedding_GD, margin)
    statistics.refresh()
    margins = statistics.margins(refreshed=True)
    sound = statistics.kappa_K[:30]
    assert (statistics.kappa_K[30] - sound.mean()) / sound.std() > 200
    assert 0 < margins[30] < margins[:30].min()


def test_one_class_only():
    statistics = filled([9], around(1, 1.0, [9]), KappaFace())
    statistics.refresh()
    assert statistics.margins(refreshed=True).tolist() == pytest.approx([0.28])  # neutral, largest


def test_two_classes_stand_on_either_side():
    spread = torch.tensor([0.3] * 5 + [1.0] * 5)
    statistics = filled([5, 5], around(2, spread, [5, 5]), KappaFace())
    statistics.refresh()
    easy, hard = statistics.margins(refreshed=True).tolist()
    sigmoid = 1 / (1 + math.exp(-0.4))
    assert easy == pytest.approx(0.8 * 0.7 * (1 - sigmoid))
    assert hard == pytest.approx(0.8 * 0.7 * sigmoid)


def test_a_class_with_99_percent_of_the_images():
    counts = torch.tensor([4950] + [5] * 10)
    statistics = filled(counts, around(11, 0.8, counts), KappaFace())
    statistics.refresh()
    margins = statistics.margins(refreshed=True)
    assert margins.isfinite().all()
    assert ((margins > 0) & (margins <= 0.8)).all()
    assert margins[0] < margins[1:].min()


def test_no_class_at_all_on_this_rank():
    statistics = ClassStatistics(torch.zeros(0, dtype=torch.int64), 32, KappaFace(), CPU)
    nothing = torch.zeros(2, dtype=torch.bool)
    statistics.add(torch.ones(2, 32), torch.zeros(2), torch.zeros(2, dtype=torch.int64), nothing)
    statistics.refresh()
    assert len(statistics.margins(refreshed=True)) == 0


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
