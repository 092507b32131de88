"""The two passes with the head's settings: cache, filter, split centres, fp16 and bf16 state."""

import pytest
import torch
import torch.nn.functional as F

from kappaface_dist.head import ArcFace, PartialFC, SGDRows
from tests.numerics.test_streaming_softmax import C, D, G, batch, close_to, relative


def one_step(embedding_GD, label_G, parts=1, **settings):
    """(loss, embedding gradient, centre gradient, centres after a step) of one batch in parts."""
    settings = {"dtype": torch.float32, "chunk_bytes": 4 * G * 128, **settings}
    head = PartialFC(C, D, ArcFace(), **settings)
    ours_GD = embedding_GD.clone().requires_grad_()
    losses = []
    if parts > 1:
        head.announce(label_G)
    for part_GD, part_G in zip(ours_GD.chunk(parts), label_G.chunk(parts), strict=True):
        loss = head(part_GD, part_G) / parts
        loss.backward()
        losses.append(loss.detach())
    gradient_KD = head.weight_gradient()
    head.step(0.1)
    return sum(losses), ours_GD.grad, gradient_KD, head.weight_KD


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_the_cache_costs_the_centres_a_rounding_to_bf16_and_nothing_else(parts, share):
    label_G = batch()[1]
    # Half converged, so that the negatives' part of the gradient is small beside nothing else.
    embedding_GD = close_to(PartialFC(C, D, ArcFace()), label_G, torch.Generator(), 1.5)
    plain = one_step(embedding_GD, label_G, parts)
    cached = one_step(embedding_GD, label_G, parts, logit_cache_bytes=int(2 * G * C * share))
    for name, ours, expected in zip(("loss", "embedding"), cached, plain, strict=False):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, msg=name)
    error = relative(cached[2], plain[2])
    assert 0 < error < 2**-9


def test_micro_batches_share_a_sample_and_so_use_the_cache():
    label_G = batch()[1]
    embedding_GD = close_to(PartialFC(C, D, ArcFace()), label_G, torch.Generator(), 1.5)
    settings = {"sample_rate": 0.3, "parts": 2}
    plain = one_step(embedding_GD, label_G, **settings)
    cached = one_step(embedding_GD, label_G, **settings, logit_cache_bytes=1 << 20)
    torch.testing.assert_close(cached[:2], plain[:2], rtol=0, atol=0)
    assert 0 < relative(cached[2], plain[2]) < 2**-9


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_negatives_above_the_filter_threshold_are_left_out(threshold, cache_bytes):
    """In float64, so that no negative lies within rounding of the threshold."""
    embedding_GD, label_G = batch()
    settings = {"dtype": torch.float64, "filter_threshold": threshold}
    ours = one_step(embedding_GD.double(), label_G, logit_cache_bytes=cache_bytes, **settings)
    dense_GD = embedding_GD.double().requires_grad_()
    weight_CD = PartialFC(C, D, ArcFace(), dtype=torch.float64).weight_KD.requires_grad_()
    cosine_GC = F.normalize(dense_GD) @ F.normalize(weight_CD).T
    one_hot_GC = F.one_hot(label_G, C).bool()
    dropped_GC = (cosine_GC > threshold) & ~one_hot_GC
    assert dropped_GC.any()
    target_GC = torch.cos(torch.arccos(cosine_GC) + 0.5)
    logit_GC = 64.0 * torch.where(one_hot_GC, target_GC, cosine_GC)
    expected = F.cross_entropy(logit_GC.masked_fill(dropped_GC, -torch.inf), label_G)
    expected.backward()
    torch.testing.assert_close(ours[0], expected.detach(), rtol=1e-12, atol=0)
    assert relative(ours[1], dense_GD.grad) < 1e-10
    assert relative(ours[2], weight_CD.grad) < (1e-10 if cache_bytes == 0 else 2**-8)


def test_split_centres_are_the_same_bits_and_nearly_the_same_step():
    head = PartialFC(C, D, ArcFace(), dtype=torch.bfloat16, split_centres=True)
    start_KD = PartialFC(C, D, ArcFace()).weight_KD
    embedding_GD, label_G = batch()
    head(embedding_GD.requires_grad_(), label_G)
    assert torch.equal(head.weight_KD, start_KD)
    split = one_step(embedding_GD.detach(), label_G, dtype=torch.bfloat16, split_centres=True)
    whole = one_step(embedding_GD.detach(), label_G, dtype=torch.bfloat16)
    # Cut off instead of rounded: an operand is off by up to 2^-7, a logit of 20 by some 0.03.
    for ours, expected in zip(split, whole, strict=True):
        assert 0 < relative(ours, expected) < 5e-2


def test_split_centres_need_bf16():
    with pytest.raises(ValueError, match=r"head\.split_centres needs bf16"):
        PartialFC(C, D, ArcFace(), split_centres=True)


def overflowing_steps(scaler_starts_at):
    """Four steps with an fp16 loss scale that halves where the embeddings' gradient overflows."""
    head = PartialFC(C, D, ArcFace())
    scale = torch.tensor(float(scaler_starts_at))
    skipped = []
    while len(skipped) - sum(skipped) < 4:
        embedding_GD, label_G = batch(seed=len(skipped) - sum(skipped))
        half_GD = embedding_GD.half().requires_grad_()
        (head(half_GD, label_G) * scale).backward()
        overflow = ~half_GD.grad.isfinite().all()
        head.step(0.01, loss_scale=scale, skip=overflow)
        scale = torch.where(overflow, scale / 2, scale)
        skipped.append(bool(overflow))
    return skipped, head.sharded_state()


def test_fp16_steps_that_overflow_leave_no_trace():
    skipped, ours = overflowing_steps(2.0**24)
    unscaled, expected = overflowing_steps(1.0)
    assert sum(skipped) >= 2
    assert not any(unscaled)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_bf16_momentum_takes_two_bytes_and_follows_the_full_one():
    states = []
    for dtype in (None, torch.bfloat16):
        head = PartialFC(C, D, ArcFace(), optimizer=SGDRows(momentum_dtype=dtype))
        start_KD = head.weight_KD.clone()
        for step in range(10):
            embedding_GD, label_G = batch(seed=step)
            head(embedding_GD.requires_grad_(), label_G).backward()
            head.step(1e-4)
        states.append((head.weight_KD - start_KD, head.row_state["momentum"]))
    assert states[1][1].element_size() == 2
    # Each step rounds to 2^-9; ten steps with a memory of ten add up to less than 2^-7.
    assert 0 < relative(states[1][0], states[0][0]) < 2**-7


@pytest.mark.parametrize("settings", [{"logit_cache_bytes": 30_000}, {"filter_threshold": 0.3}])
def test_settings_leave_two_runs_bitwise_equal(settings):
    embedding_GD, label_G = batch()
    for first, second in zip(
        one_step(embedding_GD, label_G, 2, **settings),
        one_step(embedding_GD, label_G, 2, **settings),
        strict=True,
    ):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filter_threshold": 1.5}, r"head\.filter_threshold is 1\.5"),
        ({"logit_cache_bytes": -1}, r"head\.logit_cache_bytes is -1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PartialFC(C, D, ArcFace(), **settings)
