"""Per-class margins are those of one process, whatever the ranks, the sample and the restarts."""

import numpy as np
import pytest
import torch

from kappaface_dist.head import KappaFace, PartialFC
from kappaface_dist.parallel import ranks as parallel
from tests.processes import run_on_ranks

NUM_CLASSES, SIZE, NUM_IMAGES, WINDOW = 37, 16, 12, 5
RESULTANT = KappaFace(decay=0.6, shrinkage=2.0, refresh_steps=WINDOW)
TARGET = KappaFace(statistic="target_cosine", refresh_steps=WINDOW)
# ψ is computed in float64 and rounded to fp32: at most one unit in the last place apart.
SAME = {"rtol": 1.2e-7, "atol": 0}


def batch(step):
    """Skewed labels and, for some classes, tight clusters."""
    generator = torch.Generator().manual_seed(step)
    draw_G = torch.rand(NUM_IMAGES, generator=generator)
    label_G = (draw_G.square() * NUM_CLASSES).long()
    mean_CD = torch.randn(NUM_CLASSES, SIZE, generator=torch.Generator().manual_seed(99))
    noise_GD = torch.randn(NUM_IMAGES, SIZE, generator=generator)
    return mean_CD[label_G] + (label_G % 5)[:, None] * 0.3 * noise_GD, label_G


def own(x_GX):
    return x_GX.chunk(parallel.world_size())[parallel.rank()]


def run(margin, sample_rate, steps, rows=None, counters=None):
    """Steps of the head with a learning rate of zero; returns its state, rows of this rank."""
    head = PartialFC(
        NUM_CLASSES,
        SIZE,
        margin,
        images_per_class=np.arange(1, NUM_CLASSES + 1),
        sample_rate=sample_rate,
    )
    if rows is not None:
        for name, tensor in head.sharded_state().items():
            tensor.copy_(torch.from_numpy(rows[name][head.classes.start : head.classes.stop]))
        head.load_counters(counters)
    for step in steps:
        embedding_GD, label_G = batch(step)
        head(own(embedding_GD).requires_grad_(), own(label_G)).backward()
        head.step(0.0)
    return {name: t.numpy() for name, t in head.sharded_state().items()}, head.counters()


def joined(results):
    return {name: np.concatenate([r[0][name] for r in results]) for name in results[0][0]}


@pytest.fixture(scope="module")
def reference():
    """One process, no group, all classes: two windows and a half."""
    return {m: run(m, 1.0, range(12)) for m in (RESULTANT, TARGET)}


@pytest.mark.parametrize("margin", [RESULTANT, TARGET], ids=["resultant", "target_cosine"])
@pytest.mark.parametrize("sample_rate", [1.0, 0.1])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_margins_do_not_depend_on_ranks_or_sample(reference, margin, sample_rate, num_ranks):
    results = run_on_ranks(num_ranks, run, margin, sample_rate, range(12))
    expected, counters = reference[margin]
    ours = joined(results)
    np.testing.assert_allclose(ours["margin"], expected["margin"], **SAME)
    np.testing.assert_allclose(ours["statistics.kappa"], expected["statistics.kappa"], rtol=1e-5)
    assert counters["num_refreshes"] == 2
    # Neither a constant nor neutral everywhere, or nothing would be shown.
    assert len(np.unique(expected["margin"])) > 20
    assert np.isfinite(expected["statistics.kappa"]).sum() > 10


@pytest.mark.parametrize("margin", [RESULTANT, TARGET], ids=["resultant", "target_cosine"])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (4, 2), (3, 1), (2, 4)])
def test_margins_after_resharding_in_mid_window(reference, margin, before, after):
    """Seven steps on some ranks, saved by row, and five on others; the window ends at ten."""
    first = run_on_ranks(before, run, margin, 1.0, range(7))
    rest = run_on_ranks(after, run, margin, 1.0, range(7, 12), joined(first), first[0][1])
    ours, (expected, counters) = joined(rest), reference[margin]
    for name in expected:
        if name.startswith("statistics."):
            np.testing.assert_allclose(ours[name], expected[name], 1e-5, 1e-6, err_msg=name)
    np.testing.assert_allclose(ours["margin"], expected["margin"], **SAME)
    assert rest[0][1]["num_refreshes"] == counters["num_refreshes"]


def test_an_epoch_ends_a_window_only_where_windows_are_epochs():
    for margin, refreshes in ((KappaFace(), 1), (RESULTANT, 0)):
        head = PartialFC(5, 4, margin)
        head.end_epoch()
        assert head.counters()["num_refreshes"] == refreshes
