"""Leaving out negligible tiles: the certificate against dense float64, and what stays exact."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kappaface_dist.head import ArcFace, CurricularFace, PartialFC
from kappaface_dist.head.shard import initial_centres
from kappaface_dist.head.softmax.negligible import choose_tiles
from kappaface_dist.parallel import ranks as parallel
from tests.head_steps import own_images
from tests.processes import run_on_ranks

NUM_CLASSES, SIZE, NUM_IMAGES, SCALE, SEED = 900, 32, 24, 64.0, 3
DEVICE = torch.device("cpu")


def batch():
    """Images between converged and hopeless, so that their negatives' masses differ widely."""
    generator = torch.Generator().manual_seed(1)
    centre_CD = initial_centres(range(NUM_CLASSES), SIZE, SEED, torch.float64, DEVICE)
    label_G = torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator)
    noise_GD = torch.randn(NUM_IMAGES, SIZE, dtype=torch.float64, generator=generator)
    spread_G1 = torch.linspace(0.0, 0.4, NUM_IMAGES, dtype=torch.float64)[:, None]
    return centre_CD, F.normalize(centre_CD[label_G]) + spread_G1 * noise_GD, label_G


def new_head(skip_mass, **options):
    return PartialFC(
        NUM_CLASSES,
        SIZE,
        ArcFace(margin=0.3),
        dtype=torch.float64,
        seed=SEED,
        chunk_bytes=1,  # 128 rows
        skip_mass=skip_mass,
        **options,
    )


def measure(skip_mass, options):
    """Loss, gradients of both sides and what was reported, of one step on this rank's images."""
    _, embedding_GD, label_G = batch()
    head = new_head(skip_mass, **options)
    losses, gradients = [], []
    head.announce(torch.cat([own_images(labels) for labels in label_G.chunk(2)]))
    for part_GD, labels in zip(embedding_GD.chunk(2), label_G.chunk(2), strict=True):
        embedding_BD = own_images(part_GD).clone().requires_grad_()
        loss = head(embedding_BD, own_images(labels)) / 2  # two micro-batches
        loss.backward()
        losses.append(loss.item())
        gradients.append(embedding_BD.grad.numpy())
    weight_KD = head.weight_gradient().numpy()
    head.step(0.1)
    return losses, np.concatenate(gradients), weight_KD, head.summary(), head.summary()


def dense_mass():
    """Σ P_ij / D_i over all negatives of all images."""
    centre_CD, embedding_GD, label_G = batch()
    logit_GC = SCALE * F.normalize(embedding_GD) @ F.normalize(centre_CD).T
    theta_G = (logit_GC.gather(1, label_G[:, None]) / SCALE).clamp(-1, 1).arccos()
    target_G1 = torch.where(
        theta_G + 0.3 < torch.pi, (theta_G + 0.3).cos(), theta_G.cos() + np.cos(0.3) - 1
    )
    logit_GC.scatter_(1, label_G[:, None], SCALE * target_G1)
    share_GC = logit_GC.softmax(dim=1).scatter(1, label_G[:, None], 0.0)
    return share_GC.sum().item()


def error_bound_holds(exact_KD, found_KD, mass):
    """Σ_j ‖w_j‖ ‖error of d loss / d w_j‖ is at most (s / G) times the mass left out."""
    centre_CD, _, _ = batch()
    error_C = np.linalg.norm(exact_KD - found_KD, axis=1) * centre_CD.norm(dim=1).numpy()
    return error_C.sum() <= SCALE / NUM_IMAGES * mass * (1 + 1e-9)


@pytest.mark.parametrize("num_ranks", [0, 1, 3])
@pytest.mark.parametrize("options", [{}, {"logit_cache_bytes": 1 << 20}], ids=["plain", "cache"])
def test_the_error_stays_within_the_reported_mass(num_ranks, options):
    exact = run_on_ranks(num_ranks, measure, 0.0, options)
    found = run_on_ranks(num_ranks, measure, 0.05, options)
    for ours, expected in zip(found, exact, strict=True):
        assert ours[0] == expected[0]
        np.testing.assert_array_equal(ours[1], expected[1])
        numbers = ours[3]
        assert numbers == found[0][3]
        assert 0.0 < numbers["skipped_mass"] <= 0.05
        assert 0.2 < numbers["skipped_tiles"] < 0.9
        # Counted since the last time: no step has been made since.
        assert "skipped_mass" not in ours[4]
        assert "skipped_mass" not in expected[3]
    whole, exact_whole = (np.concatenate([r[2] for r in results]) for results in (found, exact))
    assert not np.array_equal(whole, exact_whole)
    assert error_bound_holds(exact_whole, whole, found[0][3]["skipped_mass"] * dense_mass())


def test_a_share_too_small_for_any_tile_leaves_nothing_out():
    exact, found = (measure(skip_mass, {}) for skip_mass in (0.0, 1e-300))
    np.testing.assert_array_equal(found[2], exact[2])
    assert found[3]["skipped_mass"] == found[3]["skipped_tiles"] == 0.0


def test_sampled_micro_batches_are_within_their_bound():
    exact, found = (measure(skip_mass, {"sample_rate": 0.5}) for skip_mass in (0.0, 0.2))
    assert found[3]["skipped_tiles"] > 0.0
    assert error_bound_holds(exact[2], found[2], found[3]["skipped_mass"] * dense_mass())


def test_one_sampled_batch_is_within_its_bound():
    _, embedding_GD, label_G = batch()
    gradients, summaries = [], []
    for skip_mass in (0.0, 0.1):
        head = new_head(skip_mass, sample_rate=0.5)
        head(embedding_GD.clone().requires_grad_(), label_G).backward()
        gradients.append(head.weight_gradient().numpy())
        head.step(0.1)
        summaries.append(head.summary())
    assert summaries[1]["skipped_tiles"] > 0.2
    # The drawn classes' mass is at most that of all.
    assert error_bound_holds(*gradients, summaries[1]["skipped_mass"] * dense_mass())


def test_tiles_are_those_that_a_plain_loop_leaves_out():
    generator = torch.Generator().manual_seed(0)
    sum_XG = torch.rand(7, 11, generator=generator, dtype=torch.float64) ** 4
    log_denominator_G = torch.rand(11, generator=generator, dtype=torch.float64) * 3
    tiles = choose_tiles(list(sum_XG), log_denominator_G, 0.1)
    mass_XG = (sum_XG / log_denominator_G.exp()).numpy()
    kept_XG, left = np.ones_like(mass_XG, dtype=bool), 0.0
    for place in np.argsort(mass_XG, axis=None, kind="stable"):
        if left + mass_XG.flat[place] > 0.1 * mass_XG.sum():
            break
        left += mass_XG.flat[place]
        kept_XG.flat[place] = False
    np.testing.assert_array_equal(tiles.kept_XG.numpy(), kept_XG)
    np.testing.assert_allclose(tiles.mass_2.numpy(), [left, mass_XG.sum()])
    for image_M, kept_G in zip(tiles.images(), kept_XG, strict=True):
        expected = np.arange(11) if image_M is None else image_M.numpy()
        np.testing.assert_array_equal(np.flatnonzero(kept_G), expected)


def test_ranks_without_classes_take_part():
    def steps():
        head = PartialFC(2, 8, ArcFace(), skip_mass=0.1)
        embedding_BD = torch.randn(2, 8, requires_grad=True)
        head(embedding_BD, torch.tensor([0, 1])).backward()
        head.step(0.1)
        return head.summary(), len(head.classes), parallel.rank()

    found = run_on_ranks(3, steps)
    assert min(num for _, num, _ in found) == 0
    assert all(numbers == found[0][0] for numbers, _, _ in found)


@pytest.mark.parametrize("skip_mass", [-0.1, 1.0])
def test_a_share_outside_its_range_is_refused(skip_mass):
    with pytest.raises(ValueError, match=r"head\.skip_mass is"):
        PartialFC(10, 4, ArcFace(), skip_mass=skip_mass)


def test_a_margin_that_changes_negatives_is_refused():
    with pytest.raises(ValueError, match="changes the other classes' logits"):
        PartialFC(10, 4, CurricularFace(), skip_mass=0.1)
