"""Each margin's value and slope against its paper's formula and autograd, in float64."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from kappaface_dist.head import (
    AdaFace,
    ArcFace,
    CurricularFace,
    ElasticFace,
)
from kappaface_dist.head.margins import Images, target_logit
from tests.dense_margins import MARGINS, target_cosine

# Dense near the poles and around the places where the formulas change branches.
GRID = torch.cat(
    [
        torch.linspace(-1, 1, 401, dtype=torch.float64),
        torch.linspace(0, math.pi, 400, dtype=torch.float64).cos(),
    ]
).sort()[0]
NORMS = (0.5, 2.5, 4.0, 5.9, 30.0)
STATE = {
    "norm_mean": torch.tensor(4.0, dtype=torch.float64),
    "norm_std": torch.tensor(2.0, dtype=torch.float64),
    "hardness": torch.tensor(0.3, dtype=torch.float64),
}
ORACLE_STATE = {"mean": 4.0, "std": 2.0}
PARAMETRIZE = pytest.mark.parametrize("name", MARGINS)


def images(margin, cosine_G, norm, **changes):
    margin_G = torch.full_like(cosine_G, margin.class_margin)
    norm_G = torch.full_like(cosine_G, norm) if margin.uses_norm else None
    return Images(cosine_G, margin_G, norm_G, **changes)


def evaluate(margin, cosine_G, norm=4.0):
    # Not learning: ElasticFace then takes its mean margin.
    return target_logit(margin, images(margin, cosine_G, norm, learning=False), STATE)


def oracle(margin, theta_G, norm_G):
    margin_G = torch.full_like(theta_G, margin.class_margin)
    return margin.scale * target_cosine(margin, theta_G, margin_G, norm_G, ORACLE_STATE)


@pytest.mark.parametrize(
    ("name", "norm"),
    [(name, norm) for name, m in MARGINS.items() for norm in (NORMS if m.uses_norm else NORMS[:1])],
)
def test_value_and_derivatives_against_autograd(name, norm):
    margin = MARGINS[name]
    ours = evaluate(margin, GRID, norm)
    theta_G = GRID.acos().requires_grad_()
    norm_G = torch.full_like(GRID, norm).requires_grad_()
    expected_G = oracle(margin, theta_G, norm_G)
    torch.testing.assert_close(ours.logit_G, expected_G, rtol=0, atol=1e-6)
    by_theta_G, by_norm_G = torch.autograd.grad(
        expected_G.sum(), (theta_G, norm_G), allow_unused=True
    )
    # dT/dθ = −sin θ dT/dt. At the poles the slope is bounded by holding sin θ above sqrt(eps), so
    # that it times this sine is the derivative by the angle, also where dT/dt is infinite.
    sine_G = torch.maximum(theta_G.detach().sin(), torch.tensor(2.0**-26))
    torch.testing.assert_close(-sine_G * ours.slope_G, by_theta_G, rtol=1e-6, atol=2e-5)
    if ours.norm_slope_G is not None:
        torch.testing.assert_close(ours.norm_slope_G, by_norm_G, rtol=1e-9, atol=1e-9)
    assert (ours.norm_slope_G is not None) == (name == "magface")


@pytest.mark.parametrize(
    ("name", "at_zero", "at_pi"),
    [
        ("normface", 1.0, 1.0),
        ("cosface", 1.0, 1.0),
        ("sphereface4", 16.0, 16.0),  # m², from l'Hôpital's rule
        ("sphereface", 1.35**2, None),
        ("arcface", None, 1.0),
    ],
)
def test_slope_at_the_poles_where_it_is_finite(name, at_zero, at_pi):
    poles_G = torch.tensor([1.0, -1.0], dtype=torch.float64)
    slope_G = evaluate(MARGINS[name], poles_G).slope_G / 64.0
    for slope, expected in zip(slope_G.tolist(), (at_zero, at_pi), strict=True):
        assert expected is None or abs(slope - expected) < 1e-6


@PARAMETRIZE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_monotone_continuous_and_finite_over_all_angles(name, dtype):
    margin = MARGINS[name]
    for norm in NORMS:
        cosine_G = torch.linspace(0, math.pi, 20001, dtype=torch.float64).cos().flip(0).to(dtype)
        ours = evaluate(margin, cosine_G, norm)
        step_G = ours.logit_G.diff()
        rounding = 64 * 8 * torch.finfo(dtype).eps
        assert step_G.min() >= -rounding
        # |dT/dθ| <= 4 s here: no jump between neighbours.
        assert step_G.max() <= 64 * 4.5 * math.pi / 20000 + rounding
        assert ours.slope_G.min() >= -16 * rounding  # slopes reach 16 s
        assert ours.slope_G.isfinite().all()


@PARAMETRIZE
def test_cosines_beyond_one_by_rounding_are_clipped(name):
    beyond_G = torch.tensor([1.0 + 1e-7, -1.0 - 1e-7], dtype=torch.float64)
    ours, at_one = (evaluate(MARGINS[name], t_G) for t_G in (beyond_G, beyond_G.sign()))
    torch.testing.assert_close(ours.logit_G, at_one.logit_G, rtol=0, atol=1e-5)
    assert ours.slope_G.isfinite().all()


@PARAMETRIZE
def test_straight_through_takes_the_scale_as_slope_and_the_same_value(name):
    exact = evaluate(MARGINS[name], GRID)
    straight = evaluate(dataclasses.replace(MARGINS[name], straight_through=True), GRID)
    torch.testing.assert_close(straight.logit_G, exact.logit_G, rtol=0, atol=0)
    assert straight.slope_G.unique().tolist() == [64.0]
    assert straight.norm_slope_G is None


def test_the_published_straight_through_gradient():
    """At cos θ = 0.3: 64.0 straight through, where the derivative of s·cos(θ + 0.5) is 65.8."""
    cosine_G = torch.tensor([0.3], dtype=torch.float64)
    exact = evaluate(ArcFace(), cosine_G).slope_G.item()
    assert abs(exact - 65.8) < 0.05
    assert evaluate(ArcFace(straight_through=True), cosine_G).slope_G.item() == 64.0


def test_hard_negatives_against_autograd():
    margin = CurricularFace()
    target_G = torch.tensor([0.9, 0.2, -0.95], dtype=torch.float64)
    negatives = margin.negatives(images(margin, target_G, 1.0), STATE)
    cosine_GR = GRID.repeat(3, 1).requires_grad_()
    threshold_G = torch.stack([(t.acos() + 0.5).cos() for t in target_G[:2]])
    threshold_G = torch.cat([threshold_G, (target_G[2] + math.cos(0.5) - 1.0)[None]])
    hard_GR = cosine_GR > threshold_G[:, None]
    expected_GR = torch.where(hard_GR, cosine_GR * (0.3 + cosine_GR), cosine_GR)
    (slope_GR,) = torch.autograd.grad(expected_GR.sum(), cosine_GR)
    logit_GR = 64 * GRID.repeat(3, 1)
    ours_GR = negatives.transform(logit_GR)
    torch.testing.assert_close(logit_GR, 64 * expected_GR.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours_GR, slope_GR, rtol=1e-12, atol=1e-12)
    assert 0.1 < hard_GR.double().mean() < 0.9
    assert logit_GR.max() <= 64 * margin.largest_cosine


def test_elastic_margins_are_normal_and_differ_by_seed():
    margin = ElasticFace(margin=0.5, deviation=0.05)
    cosine_G = torch.linspace(-0.9, 0.9, 20_000, dtype=torch.float64)
    drawn_G = margin.draw(images(margin, cosine_G, 1.0, seed=1))
    # The deviation of a mean of 20,000 is 0.05/141; of a deviation 0.05/200.
    assert abs(drawn_G.mean() - 0.5) < 4 * 0.05 / 141
    assert abs(drawn_G.std() - 0.05) < 4 * 0.05 / 200
    again_G = margin.draw(images(margin, cosine_G, 1.0, seed=1))
    other_G = margin.draw(images(margin, cosine_G, 1.0, seed=2))
    assert torch.equal(drawn_G, again_G)
    assert abs(np.corrcoef(drawn_G, other_G)[0, 1]) < 0.03

    hardest_get_most = ElasticFace(plus=True).draw(images(margin, cosine_G.flip(0), 1.0, seed=1))
    assert (hardest_get_most.diff() >= 0).all()


def test_a_non_finite_batch_does_not_enter_the_running_averages():
    margin = AdaFace()
    state = {name: torch.tensor(value) for name, value in margin.init_state().items()}
    one_bad = images(margin, torch.zeros(3), 10.0)
    one_bad.norm_G[1] = torch.nan
    margin.observe(one_bad, state)
    assert abs(state["norm_mean"].item() - (0.99 * 20 + 0.01 * 10)) < 1e-5
    all_bad = images(margin, torch.zeros(3), torch.nan)
    before = {name: value.clone() for name, value in state.items()}
    margin.observe(all_bad, state)
    assert state == before
