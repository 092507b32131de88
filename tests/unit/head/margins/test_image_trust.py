"""Weights of images from two kinds of target cosines, against scipy and planted wrong labels."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import norm

from kappaface_dist.head import ArcFace, KappaFace
from kappaface_dist.head.margins.image_trust import ImageTrust, quantiles, trust_for

CPU = torch.device("cpu")


def cosines(share, low=0.05, high=0.6, std=0.08, number=6000, seed=0):
    rng = np.random.default_rng(seed)
    wrong_X = rng.random(number) < share
    return np.where(wrong_X, rng.normal(low, std, number), rng.normal(high, std, number)), wrong_X


def after_an_epoch(cosine_X):
    trust = ImageTrust(CPU, loss=True, statistics=False)
    for part_G in torch.from_numpy(cosine_X).split(100):
        assert trust.weights(part_G).eq(1.0).all()  # nothing is known yet
    trust.end_epoch()
    return trust


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3])
def test_planted_wrong_labels_are_found_and_weighted_by_their_posterior(share, caplog):
    caplog.set_level("INFO")
    cosine_X, wrong_X = cosines(share)
    trust = after_an_epoch(cosine_X)
    kinds = trust.kinds
    assert kinds.share[0] == pytest.approx(wrong_X.mean(), abs=0.01)
    np.testing.assert_allclose(kinds.mean, [0.05, 0.6], atol=0.02)
    assert kinds.std == pytest.approx(0.08, abs=0.004)
    low, high = (
        s * norm.pdf(cosine_X, m, kinds.std) for s, m in zip(kinds.share, kinds.mean, strict=True)
    )
    found_X = trust.weights(torch.from_numpy(cosine_X)).numpy()
    np.testing.assert_allclose(found_X, np.maximum(high / (low + high), 1e-12), rtol=1e-9)
    assert found_X[wrong_X].mean() < 0.03
    assert found_X[~wrong_X].mean() > 0.99
    # 6000 images of the first epoch, each in full, and these.
    expected = (6000 + found_X.sum()) / 12_000
    said = trust.summary()
    assert said == {"dirty_share": kinds.share[0], "image_weight": pytest.approx(expected)}
    assert trust.summary() == {"dirty_share": kinds.share[0]}
    assert f"robust: {100 * kinds.share[0]:.1f} % of the target cosines lie around" in caplog.text


@pytest.mark.parametrize(
    "cosine_X",
    [
        cosines(0.0)[0],  # one kind
        cosines(0.7)[0],  # the low ones are most: no few wrong labels
        cosines(0.2, low=0.45, high=0.85)[0],  # hard, not wrong
        np.random.default_rng(0).uniform(-0.2, 0.9, 5000),  # wide, and no two kinds
        np.full(5, 0.3),
    ],
)
def test_where_there_are_not_two_kinds_every_image_counts_in_full(cosine_X, caplog):
    caplog.set_level("INFO")
    trust = after_an_epoch(cosine_X)
    assert trust.kinds is None
    assert trust.weights(torch.linspace(-1, 1, 50)).eq(1.0).all()
    assert trust.summary() == {"dirty_share": 0.0, "image_weight": 1.0}
    assert "robust: the target cosines are of one kind" in caplog.text


def test_a_cosine_that_is_no_number_harms_nobody():
    trust = after_an_epoch(cosines(0.2)[0])
    found = trust.weights(torch.tensor([0.6, torch.nan, -1.0001, 1.0001]))
    assert found[[0, 2, 3]].isfinite().all()


def test_what_a_checkpoint_keeps_is_all(caplog):
    cosine_X, _ = cosines(0.2)
    trust, again = after_an_epoch(cosine_X), ImageTrust(CPU, loss=True, statistics=False)
    trust.weights(torch.from_numpy(cosine_X[:700]))
    again.load_counters(json.loads(json.dumps(trust.counters())))
    assert again.counters() == trust.counters()
    few_G = torch.linspace(-1, 1, 50)
    assert torch.equal(trust.weights(few_G), again.weights(few_G))
    trust.end_epoch(), again.end_epoch()
    assert again.counters() == trust.counters()
    again.load_counters(None)  # of a run that had none
    assert again.weights(few_G).eq(1.0).all()


def test_quantiles_are_those_of_all_cosines():
    count_X = np.zeros(500, np.int64)
    count_X[[3, 250, 251]] = 2, 1, 3
    middle = (np.array([3, 3, 250, 251, 251, 251]) + 0.5) / 250 - 1
    np.testing.assert_allclose(quantiles(count_X), middle)
    many = quantiles(np.full(500, 10**6))
    assert len(many) == 4000
    np.testing.assert_allclose(many, np.linspace(-1, 1, 4000), atol=0.005)


def test_what_cannot_be_meant_is_refused():
    assert trust_for("off", ArcFace(), CPU) is None
    both = trust_for("both", KappaFace(source="memory"), CPU)
    assert (both.loss, both.statistics) == (True, True)
    for margin in (ArcFace(), KappaFace(source="encoder")):
        with pytest.raises(ValueError, match=r"head\.robust is both, but this margin has no class"):
            trust_for("both", margin, CPU)
        assert not trust_for("loss", margin, CPU).statistics
    with pytest.raises(ValueError, match=r"head\.robust is 'on': choose one of off, loss"):
        trust_for("on", ArcFace(), CPU)
