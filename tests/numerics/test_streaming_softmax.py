"""Precision, range and memory of the two passes, in one process against dense float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kappaface_dist.head import ArcFace, KappaFace, PartialFC
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
