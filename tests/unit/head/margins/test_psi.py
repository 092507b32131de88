"""From concentrations to margins, and what the log says of both."""

import math

import numpy as np
import pytest
import torch

from kappaface_dist.head import KappaFace
from kappaface_dist.head.margins.class_margins import ClassMargins
from kappaface_dist.head.margins.psi import (
    concentration_summary,
    measured_line,
    narrow_margins,
    psi,
)
from tests.unit.head.margins.test_concentration import CPU, around


def filled(count_C, embedding_GD, margin):
    """Margins before any refresh; class c has shown its next count_C[c] embeddings."""
    count_C = torch.as_tensor(count_C)
    size = embedding_GD.shape[1]
    classes = ClassMargins(margin, range(len(count_C)), size, count_C.numpy(), torch.float32, CPU)
    label_G = torch.arange(len(count_C)).repeat_interleave(count_C)
    shown_GD = embedding_GD[: len(label_G)]
    shown_G = torch.ones(len(label_G), dtype=torch.bool)
    classes.see(shown_GD, torch.zeros(len(label_G)), label_G, shown_G, {})
    return classes


def psi_of(classes):
    found = classes.statistics
    return psi(found.kappa_K, found.count_K, found.margin, found.embedding_size)


def test_class_size_does_not_pass_for_concentration(draws):
    """A long tail of equal κ: the published estimate gives small classes less margin."""
    rng = np.random.default_rng(1)
    counts = np.minimum(2 + rng.pareto(1.0, 3000) * 2, 150).astype(np.int64)
    pool = torch.cat([draws[torch.from_numpy(rng.permutation(len(draws)))] for _ in range(5)])
    correlation = {}
    for estimator in ("unbiased", "plugin"):
        margin = KappaFace(estimator=estimator, concentration_share=1.0)
        classes = filled(counts, pool, margin)
        classes.refresh()
        psi = psi_of(classes).numpy()
        correlation[estimator] = np.corrcoef(psi, np.log(counts))[0, 1]
    assert abs(correlation["unbiased"]) < 0.05
    assert correlation["plugin"] > 0.6


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
    classes = filled(counts, around(40, spread, counts), margin)
    classes.refresh()
    kappa = classes.statistics.kappa_K.double().numpy()
    np.testing.assert_allclose(psi_of(classes), expected_psi(kappa, counts, margin), rtol=1e-12)
    margins = classes.margin_K
    np.testing.assert_allclose(margins, 0.8 * psi_of(classes), rtol=1e-6)
    assert margins.max() / margins.min() > 1.2


@pytest.mark.parametrize("standardise", ["robust", "logarithmic", "released"])
def test_other_ways_to_standardise_against_numpy(standardise):
    """With classes of nearly identical photos, which only the released way takes for classes."""
    counts = np.concatenate([np.arange(2, 202), [3, 3]])
    spread = torch.linspace(0.3, 1.2, 202)
    spread[-2:] = 0.0
    margin = KappaFace(standardise=standardise, concentration_share=1.0)
    shown = around(202, spread.repeat_interleave(torch.from_numpy(counts)), counts)
    classes = filled(counts, shown, margin)
    classes.refresh()
    kappa, size = classes.statistics.kappa_K.double().numpy(), shown.shape[1]
    sound = kappa < kappa.max() * 0.999
    assert sound.sum() == 200
    if standardise == "robust":
        low, middle, high = np.quantile(kappa, [0.25, 0.5, 0.75])
        z = ((kappa - middle) / ((high - low) / 1.349)).clip(-5, 5)
        tolerance = 0.01  # of bins 1.5 % wide
    elif standardise == "logarithmic":
        # 2 artanh ρ, from κ = ρ (D − ρ²) / (1 − ρ²) but for ρ² beside D.
        value = np.arcsinh(2 * kappa / size)
        z = ((value - value[sound].mean()) / value[sound].std()).clip(-5, 5)
        tolerance = 1e-6
    else:
        z = (kappa - kappa.mean()) / kappa.std(ddof=1)
        tolerance = 1e-6
    expected = 1 - 1 / (1 + np.exp(-margin.temperature * z))
    np.testing.assert_allclose(psi_of(classes), expected, rtol=tolerance)
    assert np.ptp(expected[:200]) > (1e-3 if standardise == "released" else 0.2)


def test_before_the_first_refresh():
    counts = np.array([1, 10, 100])
    neutral, one = (filled(counts, around(3, 1.0, counts), m) for m in (KappaFace(), RELEASED))
    rare = (1 + np.cos(np.pi * counts / 100)) / 2
    expected = 0.8 * (0.7 * 0.5 + 0.3 * rare)
    np.testing.assert_allclose(neutral.margin_K, expected, rtol=1e-6)
    assert abs(neutral.margin_K[0].item() - 0.52) < 0.001
    assert one.margin_K.tolist() == pytest.approx([0.8] * 3)


RELEASED = KappaFace(first_window="one")
COUNTS = torch.arange(2, 52)


def others(margin, extra):
    """Margins of 50 sound classes, with the classes of extra (embeddings) beside them."""
    spread = torch.linspace(0.3, 1.2, 50).repeat_interleave(COUNTS)
    embedding_GD = torch.cat([around(50, spread, COUNTS), *extra])
    counts = torch.cat([COUNTS, torch.tensor([len(e) for e in extra], dtype=torch.int64)])
    classes = filled(counts, embedding_GD, margin)
    classes.refresh()
    return classes.margin_K


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
    classes = filled([4, 4, 4], embedding_GD, KappaFace())
    classes.refresh()
    assert classes.margin_K.tolist() == pytest.approx([0.28] * 3)


def test_a_collapsed_class_keeps_some_margin(draws):
    """Its κ lies hundreds of deviations from the others': unbounded, ψ would be 0 in fp32."""
    counts = [20] * 31
    embedding_GD = torch.cat([draws[:600], draws[:1].repeat(20, 1)])
    margin = KappaFace(concentration_share=1.0, temperature=2.0)
    classes = filled(counts, embedding_GD, margin)
    classes.refresh()
    margins = classes.margin_K
    sound = classes.statistics.kappa_K[:30]
    assert (classes.statistics.kappa_K[30] - sound.mean()) / sound.std() > 200
    assert 0 < margins[30] < margins[:30].min()


def test_one_class_only():
    classes = filled([9], around(1, 1.0, [9]), KappaFace())
    classes.refresh()
    assert classes.margin_K.tolist() == pytest.approx([0.28])  # neutral, largest


def test_two_classes_stand_on_either_side():
    spread = torch.tensor([0.3] * 5 + [1.0] * 5)
    classes = filled([5, 5], around(2, spread, [5, 5]), KappaFace())
    classes.refresh()
    easy, hard = classes.margin_K.tolist()
    sigmoid = 1 / (1 + math.exp(-0.4))
    assert easy == pytest.approx(0.8 * 0.7 * (1 - sigmoid))
    assert hard == pytest.approx(0.8 * 0.7 * sigmoid)


def test_a_class_with_99_percent_of_the_images():
    counts = torch.tensor([4950] + [5] * 10)
    classes = filled(counts, around(11, 0.8, counts), KappaFace())
    classes.refresh()
    margins = classes.margin_K
    assert margins.isfinite().all()
    assert ((margins > 0) & (margins <= 0.8)).all()
    assert margins[0] < margins[1:].min()


def test_the_log_says_what_the_margins_are_made_of():
    """Two of four classes measured, 12 of 14 images: against numpy."""
    counts = np.array([5, 7, 1, 1])
    classes = filled(counts, around(4, torch.tensor([0.4] * 5 + [0.8] * 9), counts), KappaFace())
    numbers = classes.summary(4)
    assert numbers["margin_refreshes"] == 0
    assert "concentration_std" not in numbers
    assert measured_line(numbers).startswith("KappaFace has measured no class")
    classes.refresh()
    numbers = classes.summary(4)
    kappa = classes.statistics.kappa_K.double().numpy()[:2]
    margins = classes.margin_K.double().numpy()[:2]
    assert numbers["margin_refreshes"] == 1
    assert numbers["concentration_std"] == pytest.approx(kappa.std(), rel=1e-6)
    assert numbers["margin_std"] == pytest.approx(margins.std(), rel=1e-6)
    assert numbers["neutral_share"] == 0.5
    assert numbers["measured_image_share"] == pytest.approx(12 / 14)
    line = measured_line(numbers)
    assert line.startswith("KappaFace has measured 50.0% of the classes, with 85.7% of the images")
    assert f"{kappa.std():.3g}, of their margins {margins.std():.3g}" in line


def warned(kappa):
    margin = KappaFace()
    kappa_K = torch.as_tensor(kappa).float()
    count_K = torch.full((len(kappa_K),), 9)
    margin_K = 0.8 * psi(kappa_K, count_K, margin, 512)
    numbers = concentration_summary(kappa_K, margin_K, count_K, margin, 512)
    return narrow_margins(numbers), numbers


def test_a_few_extreme_classes_are_warned_of():
    """What 123 people of LFW with a κ of about 10,000 did to 1,200 with one of about 700."""
    rng = np.random.default_rng(0)
    sound = rng.normal(700.0, 105.0, 1200)
    few = rng.normal(10_000.0, 500.0, 123)
    assert warned(sound)[0] is None
    warning, numbers = warned(np.concatenate([sound, few]))
    assert warning.startswith("KappaFace hardly tells classes apart")
    assert f"standard deviation of {numbers['concentration_std']:.3g}" in warning
    assert warned(rng.standard_t(3, 1200) * 80 + 900)[0] is None  # long tails are no fault
    assert narrow_margins({}) is None  # nothing measured, nothing to warn of
