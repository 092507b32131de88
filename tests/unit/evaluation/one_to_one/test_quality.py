"""The error against rejected images, image by image."""

import numpy as np
import pytest
from scipy.integrate import trapezoid

from kappaface_dist.evaluation.one_to_one.quality import reject_curve


def made_up(informative, num_pairs=400, seed=0):
    """Pairs whose worse image makes them fail, or qualities that say nothing."""
    generator = np.random.default_rng(seed)
    quality_P2 = generator.uniform(5, 25, (num_pairs, 2))
    same_P = np.arange(num_pairs) % 2 == 0
    blur_P = (25 - quality_P2.min(axis=1)) / 20 if informative else generator.random(num_pairs)
    distance_P = np.where(same_P, 0.6 + 1.2 * blur_P, 1.9 - 0.3 * blur_P)
    return np.clip(distance_P + generator.normal(0, 0.1, num_pairs), 0, 4), same_P, quality_P2


def test_the_curve_is_what_counting_says():
    distance_P, same_P, quality_P2 = made_up(True)
    curve = reject_curve(distance_P, same_P, quality_P2, threshold=0.4, far="1e-2")
    ranked = sorted((q, p, k) for p, pair in enumerate(quality_P2) for k, q in enumerate(pair))
    for share, fnmr, fmr in zip(curve.share_X, curve.fnmr_X, curve.fmr_X, strict=True):
        gone = {pair for _, pair, _ in ranked[: round(share * len(ranked))]}
        left = [p for p in range(len(same_P)) if p not in gone]
        accepted = {True: [], False: []}
        for p in left:
            accepted[bool(same_P[p])].append(1 - distance_P[p] / 2 >= 0.4)
        assert fnmr == pytest.approx(1 - np.mean(accepted[True]))
        if accepted[False]:
            assert fmr == pytest.approx(np.mean(accepted[False]))
        else:
            assert np.isnan(fmr)
    width = curve.share_X[-1]
    assert curve.area == pytest.approx(trapezoid(curve.fnmr_X, curve.share_X) / width)
    summary = curve.summary()
    assert (summary["fnmr"], summary["area"]) == (curve.fnmr_X[0], curve.area)
    assert None in summary["fmr_of_rest"] or np.isfinite(curve.fmr_X).all()


def test_quality_that_tells_something_has_a_smaller_area():
    for informative in (True, False):
        distance_P, same_P, quality_P2 = made_up(informative, 4000)
        curve = reject_curve(distance_P, same_P, quality_P2, threshold=0.4, far="1e-2")
        assert (curve.area < 0.5 * curve.fnmr_X[0]) == informative
        assert curve.fnmr_X[0] > 0.2


def test_equal_qualities_and_one_kind_have_no_curve():
    distance_P, same_P, quality_P2 = made_up(True)
    ones_P2 = np.ones_like(quality_P2)
    assert reject_curve(distance_P, same_P, ones_P2, threshold=0.4, far="1e-2") is None
    different_P = np.zeros_like(same_P)
    assert reject_curve(distance_P, different_P, quality_P2, threshold=0.4, far="1e-2") is None
