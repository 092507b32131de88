"""The ROC plot: what its lines hold, and that it becomes a file."""

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import auc

from kappaface_dist.evaluation.protocol import roc
from kappaface_dist.evaluation.reports.plots import plot_roc, roc_figure


def curve(gap, seed=0):
    generator = np.random.default_rng(seed)
    same_P = np.tile([True, False], 500)
    return roc(generator.normal(np.where(same_P, 1.0, 1.0 + gap), 0.3), same_P)


def test_lines_are_the_curves_from_the_first_false_accept_on():
    curves = {"easy": curve(3.0), "hard": curve(0.4)}
    axes = roc_figure(curves, "Two sets").axes[0]
    assert (axes.get_xscale(), axes.get_title()) == ("log", "Two sets")
    assert axes.get_xlim() == pytest.approx((1 / 500, 1))
    labels = [line.get_label() for line in axes.get_lines()]
    lines = {
        label.partition(":")[0]: line for label, line in zip(labels, axes.get_lines(), strict=True)
    }
    assert lines.keys() == {"easy", "hard", "chance"}
    assert axes.get_ylim() == (0, 1)
    for name, expected in curves.items():
        area = auc(expected.far_T, expected.tar_T)
        assert f"{name}: n 1000, AUC {area:.4f}, EER " in lines[name].get_label()
        assert lines[name].get_drawstyle() == "steps-post"
        np.testing.assert_array_equal(lines[name].get_xdata(), expected.far_T[expected.far_T > 0])
        np.testing.assert_array_equal(lines[name].get_ydata(), expected.tar_T[expected.far_T > 0])
    assert lines["easy"].get_ydata()[0] == 1.0


def test_plot_is_a_picture(tmp_path):
    path = tmp_path / "plots" / "roc.png"
    plot_roc(path, {"set": curve(1.0)})
    with Image.open(path) as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 16)) > 10


def test_no_curve_is_named(tmp_path):
    with pytest.raises(ValueError, match="no set has both same and different pairs"):
        plot_roc(tmp_path / "roc.png", {})


def test_no_two_curves_are_drawn_alike():
    (axes,) = roc_figure({f"set {seed}": curve(1.0, seed) for seed in range(24)}).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines[:24]}) == 24
