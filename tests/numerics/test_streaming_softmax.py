"""Precision, range and memory of the two passes, in one process against dense float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kappaface_dist.head import ArcFace, KappaFace, PartialFC, SGDRows
from kappaface_dist.head.softmax.rows import Rows
from kappaface_dist.head.softmax.second_pass import MicroBatch, whole_gradient
from kappaface_dist.head.softmax.settings import Softmax
from kappaface_dist.head.softmax.streaming import negative_sums
from tests.dense_head import dense_loss

C, G, D = 500, 24, 32


def batch(num_classes=C, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embedding_GD = torch.randn(G, D, generator=generator)
    return embedding_GD, torch.randint(num_classes, (G,), generator=generator)


def close_to(head, label_G, generator, spread):
    """Embeddings near their class centres, as after convergence."""
    centre_GD = F.normalize(head.weight_KD[label_G])
    return centre_GD + spread * torch.randn(G, D, generator=generator) / math.sqrt(D)


def relative(ours, expected):
    return ((ours - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    # bf16: operands keep 8 bits; a logit of 64 cos is off by up to 64 * 2^-8 / 2 in the worst case.
    ("dtype", "loss_tolerance", "gradient_tolerance"),
    [(torch.float32, 2e-6, 5e-5), (torch.bfloat16, 1e-2, 5e-2)],
)
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.5, 5.0])
def test_value_and_gradients_against_float64(dtype, loss_tolerance, gradient_tolerance, spread):
    head = PartialFC(C, D, ArcFace(), dtype=dtype)
    _, label_G = batch()
    embedding_GD = close_to(head, label_G, torch.Generator().manual_seed(1), spread)
    ours_GD = embedding_GD.clone().requires_grad_()
    loss = head(ours_GD, label_G)
    loss.backward()

    dense_GD = embedding_GD.double().requires_grad_()
    weight_CD = head.weight_KD.double().requires_grad_()
    margin_C = torch.full((C,), 0.5, dtype=torch.float64)
    expected = dense_loss(dense_GD, weight_CD, label_G, margin_C, 64.0)
    expected.backward()
    assert abs(loss.item() - expected.item()) <= loss_tolerance * max(1.0, expected.item())
    if spread == 0.0:
        # At cos θ = 1 the true gradient is zero and its factors are 0 and ∞: ours must stay finite.
        assert ours_GD.grad.abs().max() < 1e-2
        assert head.weight_gradient().isfinite().all()
        return
    for ours, dense in ((ours_GD.grad, dense_GD.grad), (head.weight_gradient(), weight_CD.grad)):
        assert (ours - dense).norm() <= gradient_tolerance * dense.norm()


def test_ten_million_classes_at_the_largest_logit_do_not_overflow():
    """Every negative at cosine 1: Z = 1e7 e^64, within fp32 as the docstring says."""
    centre_D = F.normalize(torch.randn(D, generator=torch.Generator().manual_seed(0)), dim=0)
    num_rows, repeats = 10_000, 1_000
    rows = Rows(centre_D.repeat(num_rows, 1))
    sums = negative_sums(centre_D[None], rows, torch.tensor([-1]), Softmax(scale=64.0))
    mass = sums.sum_G * repeats
    expected = math.log(num_rows * repeats) + 64.0
    assert mass.isfinite().all()
    assert abs(mass.log().item() - expected) < 1e-4
    assert (sums.sum_GD * repeats).isfinite().all()


def test_ten_million_classes_at_the_largest_logit_do_not_cost_the_centres_their_gradient():
    """The second pass with a denominator of 1e7 e^64, at centres close to the embedding."""
    generator = torch.Generator().manual_seed(0)
    embedding_GD = F.normalize(torch.randn(1, D, generator=generator))
    weight_KD = 0.2 * (embedding_GD + 0.02 * torch.randn(200, D, generator=generator))
    log_D = math.log(1e7) + 64.0
    column_G, one = torch.tensor([-1]), torch.ones(())
    batch = MicroBatch(
        embedding_GD, column_G, torch.tensor([log_D]), torch.zeros(1), one, Rows(weight_KD)
    )
    ours = whole_gradient([batch], Softmax(scale=64.0))
    centre_KD = weight_KD.double().requires_grad_()
    logit_GK = 64.0 * embedding_GD.double() @ F.normalize(centre_KD).T
    (logit_GK - log_D).exp().sum().backward()
    assert relative(ours, centre_KD.grad) < 2e-4


@pytest.mark.parametrize("scale", [1.0, 64.0, 128.0])
def test_scales(scale):
    head = PartialFC(C, D, ArcFace(scale=scale))
    embedding_GD, label_G = batch()
    margin_C = torch.full((C,), 0.5, dtype=torch.float64)
    expected = dense_loss(embedding_GD.double(), head.weight_KD.double(), label_G, margin_C, scale)
    assert abs(head(embedding_GD, label_G).item() - expected.item()) < 2e-6 * expected.item()


@pytest.mark.parametrize("scale", [0.0, 129.0])
def test_scales_beyond_the_exact_range_are_refused(scale):
    with pytest.raises(ValueError, match=r"margin\.scale is"):
        PartialFC(C, D, ArcFace(scale=scale))


class LargestTensor(TorchDispatchMode):
    """The largest storage, in fp32 elements, behind any result that is not part of the state."""

    def __init__(self, state):
        super().__init__()
        self.state = {tensor.untyped_storage().data_ptr() for tensor in state}
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.state:
                    self.largest = max(self.largest, storage.nbytes() // 4)
        return out


@pytest.mark.parametrize("sample_rate", [1.0, 0.5])
def test_no_tensor_of_images_by_classes_nor_a_second_class_matrix(sample_rate):
    num_classes, images, size = 60_000, 256, 128
    head = PartialFC(num_classes, size, KappaFace(), sample_rate=sample_rate)
    embedding_GD = torch.randn(images, size, requires_grad=True)
    with LargestTensor(head.sharded_state().values()) as seen:
        head(embedding_GD, torch.arange(images)).backward()
        head.step(0.1)
    assert 0 < seen.largest < images * num_classes / 10
    assert seen.largest < size * num_classes / 5


def test_a_skipped_step_changes_nothing():
    head = PartialFC(C, D, KappaFace())
    embedding_GD, label_G = batch()
    head(embedding_GD.requires_grad_(), label_G).backward()
    before = {name: t.clone() for name, t in head.sharded_state().items()}
    head.step(0.1, skip=torch.tensor(True))
    for name, tensor in head.sharded_state().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_a_loss_scale_leaves_the_update_as_it_is():
    weights = []
    for loss_scale in (1.0, 1024.0):
        head = PartialFC(C, D, ArcFace())
        embedding_GD, label_G = batch()
        (head(embedding_GD.requires_grad_(), label_G) * loss_scale).backward()
        head.step(0.1, loss_scale=torch.tensor(loss_scale))
        weights.append(head.weight_KD.clone())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.parametrize("sample_rate", [1.0, 0.1])
def test_two_runs_are_bitwise_equal(sample_rate):
    finals = []
    for _ in range(2):
        head = PartialFC(2000, D, KappaFace(), sample_rate=sample_rate)
        for step in range(4):
            embedding_GD, label_G = batch(2000, step)
            head(embedding_GD.requires_grad_(), label_G).backward()
            head.step(0.1)
        head.refresh()
        finals.append({k: v.clone() for k, v in head.sharded_state().items()})
    for name, tensor in finals[0].items():
        torch.testing.assert_close(tensor, finals[1][name], rtol=0, atol=0, equal_nan=True)


def test_beyond_pi_the_value_and_gradients_are_those_of_the_continued_margin():
    """Every embedding points away from its centre: θ + m > π."""
    head = PartialFC(C, D, ArcFace())
    generator = torch.Generator().manual_seed(2)
    _, label_G = batch()
    ours_GD = (-close_to(head, label_G, generator, 0.1)).requires_grad_()
    cosine_G = (F.normalize(ours_GD) * F.normalize(head.weight_KD[label_G])).sum(dim=1)
    assert (torch.acos(cosine_G) + 0.5 > math.pi).all()
    loss = head(ours_GD, label_G)
    loss.backward()
    dense_GD = ours_GD.detach().double().requires_grad_()
    weight_CD = head.weight_KD.double().requires_grad_()
    margin_C = torch.full((C,), 0.5, dtype=torch.float64)
    expected = dense_loss(dense_GD, weight_CD, label_G, margin_C, 64.0)
    expected.backward()
    assert abs(loss.item() - expected.item()) < 2e-6 * expected.item()
    for ours, dense in ((ours_GD.grad, dense_GD.grad), (head.weight_gradient(), weight_CD.grad)):
        assert (ours - dense).norm() <= 5e-5 * dense.norm()


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
