"""Runs on planted wrong labels, with images weighted by the trust in their labels."""

import shutil

import numpy as np
import pytest

from kappaface_dist.config.file import load_config
from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.data.sources.recordio import RecordWriter
from kappaface_dist.planning.collectives import head_calls
from tests.integration.test_datasets import fit

NUM_CLASSES, IMAGES_EACH, WRONG = 12, 10, 0.2
NUM_IMAGES = NUM_CLASSES * IMAGES_EACH


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Plain patterns, a class each, a fifth of them in another class."""
    path = tmp_path_factory.mktemp("robust") / "train.rec"
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 255, (NUM_CLASSES, 4, 4, 3))
    label_I = np.repeat(np.arange(NUM_CLASSES), IMAGES_EACH)
    wrong_I = np.zeros(NUM_IMAGES, dtype=bool)
    wrong_I[rng.permutation(NUM_IMAGES)[: int(WRONG * NUM_IMAGES)]] = True
    shift_I = rng.integers(1, NUM_CLASSES, NUM_IMAGES)
    with RecordWriter(path.with_suffix("")) as writer:
        for true, wrong, shift in zip(label_I, wrong_I, shift_I, strict=True):
            pixels = np.kron(looks[true], np.ones((8, 8, 1), dtype=int))
            pixels = (pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
            writer.write(int(true + wrong * shift) % NUM_CLASSES, encode_jpeg(pixels))
    return path


@pytest.fixture
def config(write_config, record):
    return write_config(
        run={"steps": 60},
        data={"batch_size": 24, "image_size": 32, "train": str(record), "augment": "none"},
        backbone={"name": "tiny_gn", "embedding_size": 32},
        head={"robust": "both"},
        margin={"name": "kappaface", "scale": 16, "margin": 0.5},
        optimizer={"lr": 0.05},
        checkpoint={"every": 53},
    )


def test_a_fifth_of_wrong_labels_is_found_and_a_run_goes_on_bitwise(config, tmp_path):
    """Twelve epochs, stopped within one. Some of the 24 wrong labels are learnt by heart before."""
    lines, expected = fit(config, f"run.folder={tmp_path}/whole")
    assert {lines[step]["image_weight"] for step in range(1, 6)} == {1.0}  # nothing is known yet
    assert lines[60]["dirty_share"] == pytest.approx(WRONG, abs=0.05)
    assert 1.0 - lines[60]["image_weight"] == pytest.approx(WRONG, abs=0.15)  # of one batch
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(max((tmp_path / "parts" / "checkpoints").iterdir()))
    found, state = fit(config, f"run.folder={tmp_path}/parts")
    for name in ("loss", "dirty_share", "image_weight"):
        ours, theirs = ([one[step][name] for step in range(54, 61)] for one in (found, lines))
        assert ours == theirs
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


def test_another_setting_is_another_problem_and_margins_without_statistics_say_so(config):
    fit(config, "run.steps=1")
    with pytest.raises(ValueError, match=r"head\.robust was both and is off"):
        fit(config, "run.steps=2", "head.robust=off")
    with pytest.raises(ValueError, match=r"head\.robust is both, but this margin has no class"):
        fit(config, "margin.name=arcface", "run.steps=2")
    sizes = [
        {call.item: call.num_bytes for call in head_calls(load_config(config, [word]), 2)}
        for word in ("head.robust=off", "head.robust=loss")
    ]
    assert sizes[1]["loss_all_reduce"] * 2 == sizes[0]["loss_all_reduce"] * 3
