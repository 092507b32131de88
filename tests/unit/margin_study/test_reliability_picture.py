"""The picture of the reliability."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from kappaface_dist.head import KappaFace
from kappaface_dist.margin_study.margin_report import ClassMeasures
from kappaface_dist.margin_study.reliability_picture import draw_reliability

ROW = {"classes": 9, "pearson": 0.5, "spearman": 0.4, "error": 3.0, "expected_error": 2.0}


@pytest.mark.parametrize("measured", [0, 1, 5])
def test_of_as_many_classes_as_were_measured(measured):
    """None at a checkpoint of the first epoch, when two sets of photos can be compared already."""
    kappa_C = np.array([20.0, 30.0, 25.0, 40.0, 22.0])
    kappa_C[measured:] = np.nan
    count_C = np.array([4, 6, 9, 12, 30])
    classes = ClassMeasures(None, 1, KappaFace(), None, count_C, kappa_C, kappa_C, [])
    figure = Figure()
    draw_reliability(figure, classes, [ROW | {"images": 2}, ROW | {"images": 5}])
    figure.canvas.draw()
    errors = figure.axes[1]
    texts = [text.get_text() for text in errors.texts]
    assert texts == ([] if measured else ["no class was measured by this step"])
    shown = errors.collections[0].get_offsets() if measured else []
    assert len(shown) == measured
