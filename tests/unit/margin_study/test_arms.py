"""What is compared with what."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kappaface_dist.config.file import load_config
from kappaface_dist.head import ArcFace, KappaFace, build_margin
from kappaface_dist.margin_study.arms import ARMS, RELEASED, choose_arms, parse_arm
from kappaface_dist.margin_study.settings import check_settings
from kappaface_dist.margin_study.small import images_nearby, small_pairs

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["released", "released_memory", "released_encoder"])
def test_released_arms_are_the_released_presets(tmp_path, name):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"extends: {ROOT}/configs/margins/kappaface_{name}.yaml\n"
        "run: {epochs: 1}\ndata: {train: x}\n"
    )
    preset = build_margin(**load_config(path).margin)
    assert ARMS[name].build(preset.scale, {}) == preset
    assert RELEASED["estimator"] == "released"
    assert preset.source == {"released": "batch"}.get(name, name.removeprefix("released_"))


def test_every_arm_differs_from_the_others():
    fixed = {"classes": 0.45, "images": 0.4}
    built = {name: (arm.build(32.0, fixed), arm.shuffled) for name, arm in ARMS.items()}
    assert len(set(built.values())) == len(ARMS)
    assert built["arcface"][0] == ArcFace(scale=32.0, margin=0.45)
    assert built["exact"][0] == ArcFace(scale=32.0, margin=0.5)
    assert built["straight_through"][0] == ArcFace(scale=32.0, margin=0.5, straight_through=True)
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


def test_an_arm_has_its_own_rate_and_only_needed_arms_are_trained():
    slow = "slow:name=arcface,margin=0.3,straight_through=true,lr=0.05"
    arm = parse_arm(slow)[1]
    assert arm.lr == 0.05
    expected = ArcFace(scale=16.0, margin=0.3, straight_through=True)
    assert arm.build(16.0, {}) == expected
    assert list(choose_arms("straight_through", [slow], "exact")) == [
        *("exact", "straight_through", "slow")
    ]
    assert list(choose_arms("none", [slow], "slow")) == ["slow"]
    # Their margins come from KappaFace's.
    assert list(choose_arms("none", [slow])) == ["arcface", "kappaface", "slow"]
    with pytest.raises(ValueError, match="--reference is 'exakt', expected one of arcface"):
        choose_arms("none", [slow], "exakt")


def test_an_arm_has_its_own_state_of_the_head():
    arm = parse_arm("half:name=arcface,centre_dtype=bf16,momentum_dtype=none,sub_centres=3")[1]
    assert (arm.centre_dtype, arm.momentum_dtype, arm.lr) == ("bf16", "none", None)
    assert arm.sub_centres == 3
    assert arm.build(16.0, {}) == ArcFace(scale=16.0)
    plain = parse_arm("plain:name=arcface")[1]
    assert (plain.centre_dtype, plain.momentum_dtype, plain.sub_centres) == ("fp32", "fp32", 1)


def test_a_folder_of_an_earlier_version_goes_on(tmp_path):
    """Its arms have no rate of their own, and are the same arms."""
    arms = choose_arms("exact", [])
    check_settings(tmp_path, {"lr": 0.1}, arms)
    path = tmp_path / "settings.json"
    kept = json.loads(path.read_text())
    for arm in kept["arms"].values():
        del arm["lr"]
    path.write_text(json.dumps(kept))
    check_settings(tmp_path, {"lr": 0.1}, arms)
    faster = {name: replace(arm, lr=0.2) for name, arm in arms.items()}
    with pytest.raises(ValueError, match="another arm arcface, arm kappaface, arm exact"):
        check_settings(tmp_path, {"lr": 0.1}, faster)


@pytest.mark.parametrize(
    "text",
    [
        *("cold", "cold:", "cold:temperature", ":temperature=1", "a:b=[1", "a:lr=0", "a:lr=x"),
        *("a:centre_dtype=fp16", "a:momentum_dtype=2", "a:sub_centres=0", "a:sub_centres=true"),
    ],
)
def test_a_malformed_arm_is_refused(text):
    with pytest.raises(ValueError, match="--arm is"):
        parse_arm(text)


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
