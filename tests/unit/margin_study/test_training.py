"""Trainings of the comparison, and margins dealt out to other classes."""

import numpy as np
import pytest
import torch

from kappaface_dist.config.keys import Head
from kappaface_dist.head import ArcFace, KappaFace, PartialFC
from kappaface_dist.margin_study.dataset import StudyImages
from kappaface_dist.margin_study.training import Budget, build_learner, deal_margins, train

COUNT_C = np.array([2, 3, 5, 8, 13, 21, 34, 55])


def test_dealt_margins_are_the_same_ones_at_other_classes():
    plain, dealt = (PartialFC(8, 16, KappaFace(), images_per_class=COUNT_C) for _ in range(2))
    orders = []
    for window in range(3):
        deal_margins(dealt, seed=4)
        margins = plain.margins().tolist()
        assert dealt.margins().tolist() != margins
        assert sorted(dealt.margins().tolist()) == sorted(margins)
        orders.append([margins.index(margin) for margin in dealt.margins().tolist()])
        generator = torch.Generator().manual_seed(window)
        embedding_BD = torch.randn(24, 16, generator=generator)
        for head in (plain, dealt):
            head(embedding_BD.clone().requires_grad_(), torch.arange(8).repeat(3)).backward()
            head.discard()
            head.end_epoch()
    # Dealt out anew at each refresh, not once for all.
    assert orders[0] != orders[1] != orders[2]


def test_training_with_shuffled_margins():
    rng = np.random.default_rng(0)
    label_I = np.repeat(np.arange(8), COUNT_C)
    image_IHW3 = rng.integers(0, 256, (len(label_I), 16, 16, 3), dtype=np.uint8)
    none = np.zeros((0, 16, 16, 3), np.uint8)
    data = StudyImages(image_IHW3, label_I, COUNT_C, none, np.zeros((0, 2), int), np.zeros(0))
    # One epoch, hence no refresh: the margins are those of the numbers of images alone.
    budget = Budget(embedding_size=16, image_size=16, batch_size=16, epochs=1.0, scale=16.0)
    plain, shuffled = (train(data, KappaFace(scale=16.0), budget, 0, shuffled=s) for s in (0, 1))
    assert shuffled.margins["classes"] == pytest.approx(plain.margins["classes"], rel=1e-6)
    # The largest classes have the smallest margins, unless they are dealt out.
    assert shuffled.margins["images"] > plain.margins["images"] + 0.02
    assert shuffled.loss != plain.loss
    assert plain.loss_E.shape == (1,)


def test_the_arm_s_state_of_the_head_is_the_one_that_trains():
    """In two bytes a parameter the centres are on bfloat16's grid, and the losses are near."""
    rng = np.random.default_rng(1)
    label_I = np.repeat(np.arange(8), 6)
    image_IHW3 = rng.integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
    none = np.zeros((0, 16, 16, 3), np.uint8)
    data = StudyImages(image_IHW3, label_I, np.full(8, 6), none, np.zeros((0, 2), int), np.zeros(0))
    budget = Budget(embedding_size=16, image_size=16, batch_size=16, epochs=2.0, scale=16.0)
    small = Head(centre_dtype="bf16", momentum_dtype="none")
    learner = build_learner(data.count_C, ArcFace(scale=16.0), budget, 0, small, "cpu")
    assert isinstance(learner.head, PartialFC)
    kept = learner.head.sharded_state()
    assert "momentum" not in learner.head.row_state
    assert kept["weight"].dtype == torch.bfloat16
    several = build_learner(
        data.count_C, ArcFace(scale=16.0), budget, 0, Head(sub_centres=2), "cpu"
    )
    assert several.head.sharded_state()["weight"].shape == (8, 2, 16)
    plain, half = (train(data, ArcFace(scale=16.0), budget, 0, kept=k) for k in (None, small))
    assert plain.loss_E.shape == half.loss_E.shape == (2,)
    assert (plain.loss_E != half.loss_E).all()
    np.testing.assert_allclose(half.loss_E, plain.loss_E, rtol=0.05)
