"""The presets of the released code against an independent writing of what that code computes.

Shapes: C classes, I images of the dataset, D embedding size.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.head import KappaFace, build_margin
from kappaface_dist.head.margins import Images
from kappaface_dist.head.margins.class_margins import ClassMargins

CONFIGS = Path(__file__).resolve().parents[4] / "configs" / "margins"
SIZE, EPOCHS, BATCH = 24, 4, 16
COUNTS = np.array([2, 3, 4, 2, 9, 6, 31, 3, 5, 2])
LABEL_I = np.repeat(np.arange(len(COUNTS)), COUNTS)
SLOT_I = np.concatenate([np.arange(n) for n in COUNTS])
# Unreadable in the second epoch: all of one class, whose r and κ are then 0, and one of another.
UNREADABLE = {1: [*np.flatnonzero(LABEL_I == 3), int(np.flatnonzero(LABEL_I == 5)[0])]}


def preset(tmp_path, name):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"extends: {CONFIGS}/kappaface_{name}.yaml\nrun: {{epochs: 1}}\ndata: {{train: x}}\n"
    )
    return build_margin(**load_config(path).margin)


def epoch_of(number):
    """(order of the images, their unit embeddings, which can be read)."""
    rng = np.random.default_rng([number])
    mean_CD = np.random.default_rng(77).normal(size=(len(COUNTS), SIZE))
    photo_ID = np.random.default_rng(78).normal(size=(len(LABEL_I), SIZE))
    spread = (0.3 + 0.1 * LABEL_I)[:, None]
    z_ID = mean_CD[LABEL_I] + spread * photo_ID + 0.2 * rng.normal(size=photo_ID.shape)
    z_ID /= np.linalg.norm(z_ID, axis=1, keepdims=True)
    order_I = rng.permutation(len(LABEL_I))
    return order_I, z_ID[order_I], ~np.isin(order_I, UNREADABLE.get(number, []))


def released_margins(with_memory):
    """After each epoch, as memory.py and momentum_head.py there compute them; in float64."""
    memory, found = {}, []
    for number in range(EPOCHS):
        sums_CD = np.zeros((len(COUNTS), SIZE))
        for image, z, readable in zip(*epoch_of(number), strict=True):
            if not readable:
                continue
            latent = z
            if with_memory:
                latent = 0.1 * memory.get(image, np.zeros(SIZE)) + 0.9 * z
                latent = latent / np.sqrt((latent**2).sum())
                memory[image] = latent
            sums_CD[LABEL_I[image]] += latent
        r = np.sqrt((sums_CD**2).sum(axis=1)) / COUNTS
        kappa = r * (SIZE - r**2) / (1 - r**2)
        normalised = (kappa - kappa.mean()) / kappa.std(ddof=1)
        w_kappa = 1 - 1 / (1 + np.exp(-normalised * 0.4))
        w_n = (np.cos(np.pi * COUNTS / (COUNTS.max() * 1.05)) + 1) / 2
        found.append((kappa, 0.8 * (0.7 * w_kappa + 0.3 * w_n)))
    return found


@pytest.mark.parametrize("name", ["released", "released_memory", "released_encoder"])
def test_released_margins(tmp_path, name):
    margin = preset(tmp_path, name)
    classes = ClassMargins(
        margin, range(len(COUNTS)), SIZE, COUNTS, torch.float32, torch.device("cpu")
    )
    assert classes.margin_K.tolist() == pytest.approx([0.8] * len(COUNTS))  # ψ = 1 at first
    expected = released_margins(with_memory=name == "released_memory")
    for number, (kappa, margins) in enumerate(expected):
        order_I, z_ID, readable_I = epoch_of(number)
        for first in range(0, len(order_I), BATCH):
            here = slice(first, first + BATCH)
            label_G = torch.from_numpy(LABEL_I[order_I[here]])
            marks = {
                "epoch": torch.from_numpy(np.where(readable_I[here], 0, -1).astype(np.int8)),
                "slot": torch.from_numpy(SLOT_I[order_I[here]].astype(np.int32)),
            }
            classes.start_step()
            shown_GD = torch.from_numpy(z_ID[here]).float()
            classes.see(shown_GD, shown_GD[:, 0], label_G, label_G >= 0, marks)
        classes.end_epoch()
        # Ours is kept in bf16, 8 bits of which a tenth counts.
        tolerance = 2e-3 if name == "released_memory" else 1e-5
        np.testing.assert_allclose(
            classes.statistics.kappa_K, kappa, rtol=tolerance, err_msg=str(number)
        )
        np.testing.assert_allclose(classes.margin_K, margins, rtol=tolerance)
    assert expected[1][0][3] == 0.0
    assert np.ptp(expected[-1][1]) > 0.1


def test_released_logit_and_its_gradient(tmp_path):
    """s cos(θ + ψ m0), also beyond π, where it rises again; the slope by autograd of acos."""
    margin = preset(tmp_path, "released_encoder")
    cosine_G = torch.linspace(-0.999, 0.999, 401, dtype=torch.float64, requires_grad=True)
    margin_G = torch.linspace(0.05, 0.8, 401, dtype=torch.float64).flip(0)
    logit_G = 64 * torch.cos(torch.acos(cosine_G) + margin_G)
    logit_G.sum().backward()
    found = margin.target_logit(Images(cosine_G.detach(), margin_G), {})
    np.testing.assert_allclose(found.logit_G, logit_G.detach(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.slope_G, cosine_G.grad, rtol=1e-9)
    assert (found.slope_G < 0).any()
    ours = KappaFace().target_logit(Images(cosine_G.detach(), margin_G), {})
    assert (ours.slope_G > 0).all()


def test_one_photo_is_as_hard_to_tell_there_as_it_is_easy(tmp_path):
    """Their κ of one photo is infinite but for rounding, and makes all others' margins the same."""
    counts = np.array([1, 3, 9, 27])
    spread = {}
    for name in ("released", ""):
        margin = preset(tmp_path, name) if name else KappaFace()
        classes = ClassMargins(margin, range(4), SIZE, counts, torch.float32, torch.device("cpu"))
        label_G = torch.arange(4).repeat_interleave(torch.from_numpy(counts))
        generator = torch.Generator().manual_seed(0)
        mean_CD = torch.randn(4, SIZE, generator=generator)
        noise_GD = torch.randn(len(label_G), SIZE, generator=generator)
        z_GD = torch.nn.functional.normalize(mean_CD[label_G] + (label_G / 3)[:, None] * noise_GD)
        classes.see(z_GD, z_GD[:, 0], label_G, label_G >= 0, {})
        classes.end_epoch()
        kappa = classes.statistics.kappa_K
        assert kappa.isfinite().tolist() == [bool(name), True, True, True]
        rare = 0.8 * 0.3 * (1 + np.cos(np.pi * counts / (margin.count_scale * 27))) / 2
        of_kappa = classes.margin_K.numpy() - rare
        spread[name] = np.ptp(of_kappa[1:])
        assert (of_kappa > 0).all()
    assert spread["released"] < 1e-3 < 0.05 < spread[""]
