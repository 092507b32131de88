"""What is compared with what."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.head import ArcFace, KappaFace, build_margin
from kappaface_dist.margin_study.arms import ARMS, RELEASED, choose_arms, parse_arm
from kappaface_dist.margin_study.dataset import Dataset
from kappaface_dist.margin_study.small import images_nearby, small_pairs
from kappaface_dist.margin_study.training import Budget, build_comparison_head

ROOT = Path(__file__).resolve().parents[3]


def test_released_arm_is_the_released_preset(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"extends: {ROOT}/configs/margins/kappaface_released.yaml\n"
        "run: {epochs: 1}\ndata: {train: x}\n"
    )
    preset = build_margin(**load_config(path).margin)
    assert ARMS["released"].build(preset.scale, {}) == preset
    assert RELEASED["estimator"] == "plugin"


def test_every_arm_differs_from_the_others():
    fixed = {"classes": 0.5, "images": 0.4}
    built = {name: (arm.build(32.0, fixed), arm.shuffled) for name, arm in ARMS.items()}
    assert len(set(built.values())) == len(ARMS)
    assert built["arcface"][0] == ArcFace(scale=32.0, margin=0.5)
    assert built["arcface_by_image"][0] == ArcFace(scale=32.0, margin=0.4)
    assert built["kappaface"] == (KappaFace(scale=32.0), False)
    assert built["count_only"][0].concentration_share == 0.0


def test_arms_of_the_user():
    name, arm = parse_arm("cold:temperature=1.5,shrinkage=4")
    assert name == "cold"
    assert arm.build(16.0, {}) == KappaFace(scale=16.0, temperature=1.5, shrinkage=4)
    assert list(choose_arms("plugin", ["cold:temperature=1.5"])) == [
        "arcface",
        "kappaface",
        "plugin",
        "cold",
    ]
    assert parse_arm("cos:name=cosface")[1].build(16.0, {}).scale == 16.0


@pytest.mark.parametrize("text", ["cold", "cold:", "cold:temperature", ":temperature=1", "a:b=[1"])
def test_a_malformed_arm_is_refused(text):
    with pytest.raises(ValueError, match="--arm is"):
        parse_arm(text)


def dataset(count_C):
    empty = np.zeros((0, 8, 8, 3), np.uint8)
    label_I = np.repeat(np.arange(len(count_C)), count_C)
    return Dataset(empty, label_I, np.array(count_C), empty, np.zeros((0, 2), int), np.zeros(0))


def test_shuffled_margins_are_the_same_ones_at_other_classes():
    data = dataset([2, 3, 5, 8, 13, 21, 34, 55])
    budget = Budget(embedding_size=16)
    heads = [
        build_comparison_head(data, KappaFace(), budget, 4, shuffled=shuffled, device="cpu")
        for shuffled in (False, True)
    ]
    seen = []
    for _ in range(3):
        plain, dealt = (head.margins().clone() for head in heads)
        assert not torch.equal(plain, dealt)
        assert torch.equal(plain.sort().values, dealt.sort().values)
        seen.append((plain.argsort().tolist(), dealt.argsort().tolist()))
        generator = torch.Generator().manual_seed(len(seen))
        label_B = torch.arange(8).repeat(3)
        embedding_BD = torch.randn(24, 16, generator=generator)
        for head in heads:
            head(embedding_BD.clone().requires_grad_(), label_B).backward()
            head.discard()
            head.end_epoch()
    # Dealt out anew at each refresh, not once for all.
    orders = [[plain.index(c) for c in dealt] for plain, dealt in seen]
    assert orders[0] != orders[1] != orders[2]


def test_pairs_near_small_classes_are_the_small_ones():
    rng = np.random.default_rng(0)
    centre_CD = np.linalg.qr(rng.normal(size=(64, 64)))[0][:40]
    count_C = np.array([3] * 20 + [30] * 20)
    label_I = np.repeat(np.arange(40), count_C)

    def photos(person_M):
        noise = rng.normal(0, 0.05, (len(person_M), 64))
        return centre_CD[person_M] + noise

    # An unseen person is a mixture of five training people of one kind.
    group = np.array([rng.choice(20, 5, replace=False) + 20 * (m % 2) for m in range(60)])
    unseen_MD = sum(photos(group[:, k]) for k in range(5))
    nearby_M = images_nearby(photos(label_I), label_I, count_C, unseen_MD)
    np.testing.assert_allclose(nearby_M[0::2], 3, rtol=1e-9)
    np.testing.assert_allclose(nearby_M[1::2], 30, rtol=1e-9)

    pair_P2 = rng.integers(0, 60, (90, 2))
    same_P = np.arange(90) % 3 == 0
    small_P = small_pairs(nearby_M, pair_P2, same_P)
    assert (small_P & same_P).sum() == 10
    assert (small_P & ~same_P).sum() == 20
    for kind_P in (same_P, ~same_P):
        odd_P = (pair_P2 % 2).sum(axis=1)
        assert odd_P[small_P & kind_P].max() <= odd_P[~small_P & kind_P].min()
