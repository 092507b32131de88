"""Sums of embeddings held in bf16: what that does to κ, and what it does not depend on."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kappaface_dist.head import KappaFace, PartialFC
from kappaface_dist.head.margins.concentration import ClassStatistics

D, C = 512, 60
HALF, WHOLE = KappaFace(statistic_dtype="bf16"), KappaFace()
CPU = torch.device("cpu")


def statistics_of(margin, count, classes=range(C)):
    count_K = torch.full((len(classes),), count)
    return ClassStatistics(count_K, D, margin, CPU, first_class=classes.start)


def around_means(number, spread=0.7):
    """One image of each class, number after number."""
    mean_CD = F.normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(1)))
    noise_CD = torch.randn(C, D, generator=torch.Generator().manual_seed(100 + number))
    return F.normalize(mean_CD + spread / math.sqrt(D) * noise_CD)


def add(statistics, embedding_GD, row_G):
    used_G = torch.ones(len(row_G), dtype=torch.bool)
    statistics.add(embedding_GD, torch.zeros(len(row_G)), row_G, used_G)


def kappas(margin, num_images, after_each=None):
    statistics = statistics_of(margin, num_images)
    for number in range(num_images):
        add(statistics, around_means(number), torch.arange(C))
        if after_each is not None:
            after_each(statistics)
    statistics.refresh()
    return statistics.kappa_K.double()


def round_to_nearest(statistics):
    statistics.sum_KX.copy_(statistics.sum_KX.bfloat16())


@pytest.mark.parametrize(("num_images", "bound"), [(3, 0.01), (100, 0.02), (600, 0.05)])
def test_kappa_stays_within_a_bound(num_images, bound):
    """Each image alone, the worst case. A number is off by n roundings of up to 2^-8 of it, of
    random signs: ‖S‖² by some sqrt(n / D) 2^-8 of itself, κ by a few times that (ρ is 0.84 here).
    """
    expected = kappas(WHOLE, num_images)
    apart_C = kappas(HALF, num_images) / expected - 1.0
    assert apart_C.abs().max() < bound
    assert apart_C.mean().abs() < bound / 5
    if num_images == 600:  # the control: it grows no further where an image is half a step of it
        nearest_C = kappas(WHOLE, num_images, round_to_nearest) / expected - 1.0
        assert nearest_C.abs().mean() > 5 * apart_C.abs().mean()


def test_images_of_a_class_in_one_batch_are_added_before_the_rounding():
    statistics = statistics_of(HALF, 4)
    embedding_GD = torch.cat([around_means(number)[:2] for number in range(4)])
    row_G = torch.tensor([5, 2] * 4)
    add(statistics, embedding_GD, row_G)
    expected = torch.zeros(C, D).index_add_(0, row_G, embedding_GD)
    # One rounding: up to a step of bf16, 2^-7 of the number.
    torch.testing.assert_close(statistics.sum_KX.float(), expected, rtol=2**-7, atol=0)
    assert statistics.weight_K[[2, 5]].tolist() == [4.0, 4.0]
    assert statistics.sum_KX[[0, 1, 3]].count_nonzero() == 0


def test_a_shard_rounds_its_classes_as_the_whole_does():
    whole, shard = statistics_of(HALF, 5), statistics_of(HALF, 5, range(20, C))
    for number in range(5):
        embedding_CD = around_means(number)
        add(whole, embedding_CD, torch.arange(C))
        # A rank names some row of its own for the images of the others.
        row_C = (torch.arange(C) - 20).clamp_min(0)
        used_C = torch.arange(C) >= 20
        shard.add(embedding_CD, torch.zeros(C), row_C, used_C)
    assert torch.equal(shard.sum_KX, whole.sum_KX[20:])


def test_going_on_from_a_checkpoint_repeats_the_sums():
    heads = [PartialFC(C, D, HALF, images_per_class=np.full(C, 9)) for _ in range(2)]
    assert heads[0].sharded_state()["statistics.sum"].dtype == torch.bfloat16

    def show(head, number):
        head(around_means(number).requires_grad_(), torch.arange(C)).backward()
        head.step(0.1)

    for number in range(2):
        show(heads[0], number)
    for name, tensor in heads[1].sharded_state().items():
        tensor.copy_(heads[0].sharded_state()[name])
    heads[1].load_counters(heads[0].counters())
    for head in heads:
        show(head, 2)
    assert torch.equal(*(head.sharded_state()["statistics.sum"] for head in heads))


def test_an_embedding_that_is_not_finite_is_left_out():
    statistics, embedding_CD = statistics_of(HALF, 2), around_means(0)
    embedding_CD[3, 4] = torch.nan
    add(statistics, embedding_CD, torch.arange(C))
    assert statistics.sum_KX.isfinite().all()
    assert statistics.sum_KX[3].count_nonzero() == 0


def test_it_is_of_the_resultant_alone():
    with pytest.raises(ValueError, match="'bf16': it is of statistic resultant"):
        KappaFace(statistic="target_cosine", statistic_dtype="bf16")
    with pytest.raises(ValueError, match="choose fp32 or bf16"):
        KappaFace(statistic_dtype="fp16")
