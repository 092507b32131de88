"""The fingerprint of a run's problem: what counts, and what does not."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from kappaface_dist.config.file import load_config, to_dict
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.recordio import RecordWriter
from kappaface_dist.training.problem import (
    check_same_problem,
    describe_problem,
    with_margin_defaults,
)

LABELS = [0, 1, 2, 0, 1, 2, 2, 2]


def write_record(folder, labels=LABELS, seed=0):
    folder.mkdir()
    generator = np.random.default_rng(seed)
    with RecordWriter(folder / "train") as writer:
        for label in labels:
            writer.write(label, b"\xff\xd8" + generator.bytes(30))
    return folder / "train.rec"


@pytest.fixture
def start(tmp_path):
    """(problem, config) of a start with some overrides."""
    record = write_record(tmp_path / "data")
    path = tmp_path / "config.yaml"
    path.write_text(
        f"run: {{steps: 3}}\ndata: {{train: {record}, batch_size: 4}}\n"
        "backbone: {name: tiny}\nmargin: {name: kappaface, scale: 16}\n"
    )

    def _start(*overrides):
        config = load_config(path, list(overrides))
        return describe_problem(config, {"": open_catalog(config.data.train)}), config

    return _start


@pytest.fixture
def check(start, tmp_path):
    """Go on from a run without overrides with some of them; the log so far has what is said."""
    before, config = start()
    numbers = {"problem": before, "config": to_dict(config), "world_size": 2}

    def _check(*overrides):
        check_same_problem(tmp_path / "step_00000010", numbers, *start(*overrides))

    return _check


@pytest.mark.parametrize(
    ("override", "old", "new"),
    [
        ("backbone.name=tiny_gn", "tiny", "tiny_gn"),
        ("backbone.embedding_size=64", "512", "64"),
        ("margin.scale=64", "16", "64"),
        ("margin.temperature=0.5", "0.4", "0.5"),
        ("margin.statistic=target_cosine", "resultant", "target_cosine"),
        ("run.seed=1", "0", "1"),
        ("data.image_size=96", "112", "96"),
        ("data.block_shuffle=2", "0", "2"),
        ("head.filter_threshold=0.4", "None", "0.4"),
    ],
)
def test_another_problem_is_refused_until_it_is_meant(check, caplog, override, old, new):
    name = override.partition("=")[0]
    with pytest.raises(ValueError, match="of another problem") as caught:
        check(override)
    assert f"{name} was {old} and is {new}" in str(caught.value)
    assert f"run.accept_changes=[{name}]" in str(caught.value)
    with pytest.raises(ValueError, match="of another problem"):
        check(override, "run.accept_changes=[data.train]")
    check(override, f"run.accept_changes=[{name}]")
    assert f"on purpose: {name} was {old} and is {new}" in caplog.text


def test_another_margin_is_refused_with_its_name(check):
    with pytest.raises(ValueError, match=r"margin\.name was kappaface and is arcface"):
        check("margin.name=arcface", "margin.margin=0.8")
    check("margin.name=arcface", "run.accept_changes=[margin]")


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},  # other pictures, as many of each, of the same size
        {"labels": LABELS[::-1]},
        {"labels": [0, 1, 2, 0, 1, 2, 2, 3]},
        {"labels": LABELS[:-1]},
    ],
)
def test_other_data_is_refused_whatever_it_has_in_common(check, tmp_path, change):
    other = write_record(tmp_path / "other", **change)
    with pytest.raises(ValueError, match=r"data\.train was 8 images of 3 classes in") as it:
        check(f"data.train={other}")
    assert "run.accept_changes=[data.train]" in str(it.value)
    check(f"data.train={other}", "run.accept_changes=[data.train]")


def test_the_same_data_elsewhere_goes_on(check, tmp_path, caplog):
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    check(f"data.train={tmp_path}/moved/train.rec")
    (tmp_path / "moved/train.rec").rename(tmp_path / "moved/faces.rec")
    (tmp_path / "moved/train.idx").rename(tmp_path / "moved/faces.idx")
    caplog.set_level("INFO")
    check(f"data.train={tmp_path}/moved/faces.rec")
    assert "data.train is the same dataset in other files" in caplog.text
    assert "faces.rec" in caplog.text


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.lr=0.2", "optimizer.lr was 0.1 and is 0.2"),
        ("run.steps=9", "run.steps was 3 and is 9"),
        ("data.batch_size=2", "data.batch_size was 4 and is 2"),
        ("evaluate.sets.a=a.bin", "evaluate.sets.a was None and is a.bin"),
        ("log.every=7", "log.every was 50 and is 7"),
    ],
)
def test_what_a_user_may_change_goes_on_with_a_line(check, caplog, override, line):
    caplog.set_level("INFO")
    check(override)
    assert f"changed since step_00000010: {line}" in caplog.text
    assert "ranks was 2 and is 1" in caplog.text
    assert caplog.text.count("changed since") == 2


def test_a_default_that_is_spelt_out_changes_nothing(check, start, caplog):
    caplog.set_level("INFO")
    check("margin.temperature=0.4", "margin.decay=0")
    assert "temperature" not in caplog.text
    _, config = start()
    full = with_margin_defaults(config)
    assert full.margin["temperature"] == 0.4
    assert with_margin_defaults(full) == full
    assert replace(full, margin=config.margin) == config


def test_a_checkpoint_of_an_earlier_version_goes_on_and_says_so(start, tmp_path, caplog):
    problem, config = start()
    check_same_problem(tmp_path / "step_1", {"world_size": 1}, problem, config)
    assert "whether they are the same is not checked" in caplog.text
