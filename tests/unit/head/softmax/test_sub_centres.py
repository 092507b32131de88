"""The nearest of several centres: ties, chunks, caches, half precision, state."""

import pytest
import torch
import torch.nn.functional as F

from kappaface_dist.head import ArcFace, PartialFC, SGDRows
from kappaface_dist.head.shard import initial_centres
from kappaface_dist.head.softmax.rows import Rows
from kappaface_dist.head.softmax.sub_centres import keep_nearest, nearest_targets
from tests.dense_margins import margin_loss

C, A, D, G, LR = 141, 3, 16, 12, 0.01
NAN, INF = float("nan"), float("inf")


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    label_G = torch.randint(C, (G,), generator=generator)
    embedding_GD = torch.randn(G, D, generator=generator, dtype=torch.float64)
    return embedding_GD.to(dtype).requires_grad_(), label_G


def step_of(head):
    """(loss, embedding gradient, centre gradient) of a batch."""
    embedding_GD, label_G = batch()
    loss = head(embedding_GD, label_G)
    loss.backward()
    return loss.item(), embedding_GD.grad, head.weight_gradient()


def dense_step(weight_CAD, filter_threshold=None):
    """The same in float64, by autograd."""
    embedding_GD, label_G = batch(torch.float64)
    weight_CAD = weight_CAD.double().requires_grad_()
    kept_GC = torch.ones(G, C, dtype=torch.bool)
    if filter_threshold is not None:
        cosine_GCA = F.normalize(embedding_GD) @ F.normalize(weight_CAD, dim=2).mT
        kept_GC = filter_threshold >= cosine_GCA.amax(dim=2).T
        kept_GC |= F.one_hot(label_G, C).bool()
        assert not kept_GC.all()
    margin_G = torch.full((G,), 0.5, dtype=torch.float64)
    loss, _ = margin_loss(ArcFace(), embedding_GD, weight_CAD, label_G, margin_G, {}, kept_GC)
    loss.backward()
    return loss.item(), embedding_GD.grad, weight_CAD.grad.flatten(0, 1)


def test_the_largest_of_each_class_stays_and_the_first_of_equals():
    logit_GR = torch.tensor([[1.0, 3.0, 2.0, 5.0, 5.0, -1.0], [0.0, -0.0, 0.0, -4.0, -3.0, -3.0]])
    keep_nearest(logit_GR, 3)
    expected = [[-INF, 3.0, -INF, 5.0, -INF, -INF], [0.0, -INF, -INF, -INF, -3.0, -INF]]
    assert logit_GR.tolist() == expected
    # As torch's argmax has it, which takes the first of equals.
    logit_GR = torch.randn(64, 35, generator=torch.Generator().manual_seed(0)).mul(4.0).round()
    nearest_GC = logit_GR.view(64, 7, 5).argmax(dim=2)
    keep_nearest(logit_GR, 5)
    kept_GCA = logit_GR.view(64, 7, 5).isfinite()
    assert torch.equal(kept_GCA, F.one_hot(nearest_GC, 5).bool())


def test_what_is_not_a_number_is_not_hidden():
    logit_GR = torch.tensor([[1.0, NAN, 2.0, 3.0]])
    keep_nearest(logit_GR, 2)
    assert logit_GR[0, :2].isnan().any()
    assert logit_GR[0, 2:].tolist() == [-INF, 3.0]


def test_a_target_takes_the_first_of_equally_near_centres_too():
    weight_KD = torch.eye(D)[[0, 1, 1, 2, 2, 0]]
    nearest_G = nearest_targets(torch.eye(D)[[1, 2]], Rows(weight_KD), torch.tensor([0, 1]), 3)
    assert nearest_G.tolist() == [1, 0]
    empty = nearest_targets(torch.eye(D)[[1]], Rows(weight_KD[:0]), torch.tensor([0]), 3)
    assert empty.tolist() == [0]


def test_equal_centres_are_one():
    """Three copies of each centre: the loss of one, and the gradient goes to the first."""
    single = PartialFC(C, D, ArcFace())
    several = PartialFC(C, D, ArcFace(), sub_centres=A)
    several.weight_KD.copy_(single.weight_KD.repeat_interleave(A, dim=0))
    loss, gradient_GD, gradient_KD = step_of(several)
    expected = step_of(single)
    assert loss == pytest.approx(expected[0], rel=1e-6)
    torch.testing.assert_close(gradient_GD, expected[1], rtol=1e-4, atol=1e-7)
    gradient_KAD = gradient_KD.view(C, A, D)
    torch.testing.assert_close(gradient_KAD[:, 0], expected[2], rtol=1e-4, atol=1e-7)
    assert not gradient_KAD[:, 1:].any()


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({}, 1e-5),
        ({"chunk_bytes": 1}, 1e-5),  # chunks of 128 rows, which are no whole classes
        ({"filter_threshold": 0.3}, 1e-5),
        ({"logit_cache_bytes": 1 << 20}, 4e-3),  # kept in bf16
        ({"skip_mass": 1e-4, "chunk_bytes": 1}, 1e-3),
        ({"dtype": torch.bfloat16}, 2e-2),
        ({"dtype": torch.bfloat16, "split_centres": True}, 2e-2),
        ({"centre_dtype": torch.bfloat16}, 1e-5),
    ],
    ids=["plain", "chunks", "filter", "cache", "skip", "bf16", "split", "bf16 centres"],
)
def test_settings_of_the_passes(settings, tolerance):
    head = PartialFC(C, D, ArcFace(), sub_centres=A, **settings)
    weight_CAD = head.weight_KD.clone().float().view(C, A, D)
    expected = dense_step(weight_CAD, settings.get("filter_threshold"))
    found = step_of(head)
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    for ours, dense in zip(found[1:], expected[1:], strict=True):
        assert (ours - dense).norm() <= tolerance * dense.norm()


def test_an_update_is_rounded_alike_wherever_the_rows_lie():
    """bf16 centres: the random numbers are those of the row among all classes."""
    head = PartialFC(C, D, ArcFace(), sub_centres=A, centre_dtype=torch.bfloat16, seed=7)
    rows = initial_centres(range(C * A), D, 7, torch.bfloat16, torch.device("cpu"))
    assert torch.equal(head.weight_KD, rows)
    assert head.rows == range(C * A)


def test_state_has_a_row_a_class_and_is_the_live_tensors():
    head = PartialFC(C, D, ArcFace(), sub_centres=A, optimizer=SGDRows())
    step_of(head)
    head.step(LR)
    state = head.sharded_state()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes == {
        "weight": (C, A, D),
        "optimizer.momentum": (C, A, D),
        "margin": (C,),
        "statistics.chosen": (C, A),
    }
    state["weight"].zero_()
    state["optimizer.momentum"].zero_()
    assert not head.weight_KD.any()
    assert not head.row_state["momentum"].any()
    assert state["statistics.chosen"].sum() == G


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"head\.sub_centres is 0: a class has 1 or more"):
        PartialFC(C, D, ArcFace(), sub_centres=0)
    with pytest.raises(ValueError, match=r"head\.fused is tiles, but"):
        PartialFC(C, D, ArcFace(), sub_centres=2, dtype=torch.bfloat16, fused="tiles")
