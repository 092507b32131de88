"""The comparison from end to end, small, and what it says to wrong input."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kappaface_dist.evaluation.sets.pair_file import read_pairs, write_pairs
from kappaface_dist.margin_study.dataset import ARRAYS
from tests.commands import ENVIRONMENT, ROOT, exit_line, python

TOOL = "tools/compare_margins.py"
SMALL = (
    *("--image-size", 16, "--embedding-size", 16, "--batch-size", 16, "--epochs", 1),
    *("--identities", 12, "--unseen", 10, "--quick"),
)


@pytest.mark.long
def test_rendered_people(tmp_path):
    out = tmp_path / "out"
    command = (TOOL, *SMALL, "--arms", "arcface_by_image", "--out", out, "--json", "-")
    first = python(*command, "--seeds", 1, "--processes", 1)
    assert first.returncode == 0, first.stderr
    second = python(*command, "--seeds", 2, "--processes", 2, "--arm", "cold:temperature=2.0")
    assert second.returncode == 0, second.stderr
    report = json.loads(second.stdout)
    assert report["kept"] == 4  # three arms of the first seed, and the network that judges
    assert list(report["arms"]) == ["arcface", "kappaface", "arcface_by_image", "cold"]
    earlier = json.loads(first.stdout)
    for name, result in earlier["arms"].items():
        for pairs in ("all", "small"):
            assert len(report["arms"][name][pairs]) == 2
            assert report["arms"][name][pairs][0] == result[pairs][0]
            assert all(0.3 < value < 1 for value in report["arms"][name][pairs])
    values = {name: np.array(arm["all"]) for name, arm in report["arms"].items()}
    for name, paired in report["paired"].items():
        assert paired["mean"] == pytest.approx((values[name] - values["arcface"]).mean())
        assert paired["interval"][0] <= paired["mean"] <= paired["interval"][1]
        assert paired["corrected"][0] < paired["interval"][0]
        assert paired["auc"]["detectable"] > 0
    # The fixed margins are the means of KappaFace's.
    margins = {name: detail["mean_margin"] for name, detail in report["details"].items()}
    assert margins["arcface"]["classes"] == pytest.approx(margins["kappaface"]["classes"])
    assert margins["arcface_by_image"]["images"] == pytest.approx(margins["kappaface"]["images"])
    assert margins["kappaface"]["images"] < margins["kappaface"]["classes"]
    # A third of the same and of the different pairs, each rounded.
    assert report["data"]["small_pairs"] == 2 * round(report["data"]["pairs"] / 2 / 3)
    nearby = report["data"]["images_nearby"]
    assert nearby["small"] < nearby["all"]
    assert (out / "comparison.png").stat().st_size > 10_000
    assert json.loads((out / "comparison.json").read_text()) == report

    # Trained with the rate that it asks for, and nothing besides the arms that are named.
    third = (*SMALL, "--out", out, "--seeds", 1, "--processes", 1, "--json", "-")
    slow = ("--arms", "none", "--reference", "slow", "--arm", "slow:name=normface,lr=1e-6")
    done = python(TOOL, *third, *slow)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert list(report["arms"]) == ["slow"]
    assert report["details"]["slow"]["lr"] == 1e-6
    other = exit_line(*command, "--lr", 0.2)
    assert other.startswith(f"error: {out} holds results with another lr")


def test_a_record_of_the_user_made_long_tailed_with_wrong_labels(faces, tmp_path):
    done = python(
        *(TOOL, "--quick", "--image-size", 16, "--embedding-size", 16, "--epochs", 1),
        *("--train", faces / "train.rec", "--pairs", faces / "unseen.bin", "--long-tail", 2),
        *("--seeds", 1, "--arms", "shuffled,cleaned", "--out", tmp_path / "out"),
        *("--processes", 1, "--flip", 0.1, "--mixed", 0.1),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[4:7]] == ["kappaface", "shuffled", "cleaned"]
    planted = [line for line in lines if " planted, " in line]
    assert [line.split(",")[0] for line in planted] == ["wrong images", "two people", "one person"]
    assert "one seed says nothing about chance" in done.stdout
    count_C = np.load(tmp_path / "out" / "data" / "count_C.npy")
    label_I = np.load(tmp_path / "out" / "data" / "label_I.npy")
    np.testing.assert_array_equal(count_C, np.bincount(label_I))
    assert count_C.min() >= 2
    number = round(0.1 * count_C.sum())
    assert planted[0].startswith(f"wrong images, all seeds: {number} planted, ")


def test_ctrl_c_ends_it_with_one_line(faces, tmp_path):
    """Sent to the whole group, as a terminal does, while the trainings' processes start or work."""
    out = tmp_path / "out"
    small = ("--quick", "--image-size", 16, "--embedding-size", 16, "--epochs", 1000)
    data = ("--train", faces / "train.rec", "--pairs", faces / "unseen.bin", "--out", out)
    started = subprocess.Popen(
        [sys.executable, TOOL, *map(str, (*small, *data, "--seeds", 1, "--processes", 2))],
        cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not all((out / "data" / f"{name}.npy").is_file() for name in ARRAYS):
        assert started.poll() is None, started.stderr.read()
        time.sleep(0.05)
    time.sleep(3)
    os.killpg(started.pid, signal.SIGINT)
    said = started.communicate(timeout=100)[1]
    assert started.returncode == 130, said
    assert "Traceback" not in said
    assert said.rstrip().endswith("stopped by Ctrl-C")
    assert not list((out / "results").glob("*.part"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--train", "x.rec"), "--train and --pairs belong together"),
        (("--long-tail", 2), "--long-tail is for --train"),
        (("--mixed", 0.05), "--mixed is for --flip"),
        (("--flip", -1), "--flip is -1.0, expected a share"),
        (("--seeds", 0), "--seeds is 0, expected 1 to 1024"),
        (("--arms", "kapaface"), "--arms names 'kapaface'"),
        (("--arm", "cold:temperatures=1"), "did you mean temperature"),
        (("--batch-size", 1), "--batch-size is 1"),
        (("--epochs", "nan"), "--epochs is nan"),
        (("--backbone", "r51"), "backbone.name is 'r51'"),
        (("--identities", 1), "identities is 1"),
        (("--train", "nowhere.rec", "--pairs", "x.bin"), "there is no dataset at nowhere.rec"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, options, message):
    line = exit_line(TOOL, "--quick", "--out", tmp_path / "out", *options)
    assert line.startswith("error: ")
    assert message in line
    assert "\n" not in line


def test_a_set_that_is_too_small_is_refused(faces, tmp_path):
    pairs = read_pairs(faces / "unseen.bin")
    write_pairs(tmp_path / "few.bin", pairs.payloads[:40], pairs.same_P[:20])
    train = ("--train", faces / "train.rec", "--pairs", tmp_path / "few.bin")
    line = exit_line(TOOL, "--quick", "--out", tmp_path / "out", *train)
    assert "needs 30 of each at least" in line
