"""The pictures of the classes: what they say, against the head that makes the margins."""

import numpy as np
import pytest
import torch

from kappaface_dist.head import ArcFace, CosFace, KappaFace, PartialFC
from kappaface_dist.models.class_pictures import draw_classes, margins_figure, neutral_margin


def labels(figure):
    axes = figure.axes[0]
    return axes.get_ylabel(), [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("settings", [{}, {"concentration_share": 0.2, "count_scale": 1.05}])
def test_neutral_is_what_the_head_gives_classes_that_it_has_not_measured(settings):
    count_C = np.array([1, 4, 9, 60, 200])
    margin = KappaFace(**settings)
    head = PartialFC(5, embedding_size=8, margin=margin, images_per_class=count_C)
    expected_C = head.margins().numpy()
    assert neutral_margin(margin, count_C, 200) == pytest.approx(expected_C, abs=1e-6)


def test_who_is_in_the_picture_and_in_which_unit():
    count_C = np.array([0, 1, 2, 30, 400])  # of the first nobody has a photo
    kappa_C = np.array([np.nan, np.nan, 12.0, 15.0, 20.0])
    margin_C = np.full(5, 0.4)
    unit, legend = labels(margins_figure(count_C, margin_C, kappa_C, KappaFace(), 400, 7))
    assert unit == "margin, radians"
    neutral, line = legend
    assert neutral == "too few images to measure: neutral (1 classes)"
    assert line == "at mean concentration"
    nothing_C = np.full(5, np.nan)
    for margin, expected in ((ArcFace(), "radians"), (CosFace(), "as CosFace has it")):
        unit, legend = labels(margins_figure(count_C, margin_C, nothing_C, margin, 400, 7))
        assert unit == f"margin, {expected}"
        assert legend == ["one margin for all (4 classes)"]


def test_without_a_concentration_there_is_one_picture(tmp_path):
    drawn = draw_classes(
        tmp_path, np.arange(1, 6), torch.full((5,), 0.5).numpy(), np.full(5, np.nan),
        margin=ArcFace(), largest=5, step=1, history=[],
    )  # fmt: skip
    assert [path.name for path in drawn] == ["margins.png"]
    assert drawn[0].read_bytes().startswith(b"\x89PNG")
