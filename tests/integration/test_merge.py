"""data.merge: a run on two datasets with people in common is a run on the set merged by hand."""

import json
import runpy

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.data.sources.recordio import RecordWriter
from kappaface_dist.planning.fitting import counted
from kappaface_dist.training.build import build_job
from kappaface_dist.training.derived import derived_numbers
from tests.commands import ROOT, exit_line
from tests.integration.test_datasets import fit
from tests.processes import run_on_ranks

NUM_STEPS = 5
# Classes 1 and 3 of the second set are 4 and 0 of the first; 6 + 5 classes are 9 people.
FIRST, SECOND = [i % 6 for i in range(20)], [i % 5 for i in range(15)]
NUMBER = {0: 6, 1: 4, 2: 7, 3: 0, 4: 8}
MAP = "# class of the first set, class of the second, names, cosine, chance\n4\t1\tx\n0\t3\ty\n"


def write_images(path, labels, numbers):
    with RecordWriter(path.with_suffix("")) as writer:
        for label, number in zip(labels, numbers, strict=True):
            pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
            writer.write(label, encode_jpeg(np.kron(pixels, np.ones((8, 8, 1), dtype=np.uint8))))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")
    (folder / "map.tsv").write_text(MAP)
    by_hand = [*FIRST, *(NUMBER[label] for label in SECOND)]
    return {
        "map": str(folder / "map.tsv"),
        "a": write_images(folder / "a.rec", FIRST, range(20)),
        "b": write_images(folder / "b.rec", SECOND, range(20, 35)),
        "by hand": write_images(folder / "all.rec", by_hand, range(35)),
    }


@pytest.fixture
def config(write_config, files):
    return write_config(
        run={"steps": NUM_STEPS},
        data={"batch_size": 12, "image_size": 32, "train": files["by hand"]},
        backbone={"name": "tiny_gn", "embedding_size": 16},
        margin={"name": "kappaface", "scale": 16, "source": "memory"},
        head={"sample_rate": 0.5},
        optimizer={"lr": 0.02},
        checkpoint={"every": None},
    )


def merged(files):
    train = f"data.train={{a: {{path: {files['a']}}}, b: {{path: {files['b']}}}}}"
    return [train, f"data.merge={files['map']}"]


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_run_is_bitwise_that_on_the_merged_set(config, files, tmp_path, num_ranks):
    """Class statistics and memory go by the person, and over a restart on three."""
    shared = [f"data.batch_size={12 // num_ranks}"]

    def start(name, *more, stop_after=None):
        return fit(config, *shared, f"run.folder={tmp_path / name}", *more, stop_after=stop_after)

    whole = run_on_ranks(num_ranks, start, "hand")

    def interrupted():
        return start("merged", *merged(files), stop_after=3)

    if num_ranks == 3:
        run_on_ranks(num_ranks, interrupted)
    ours = run_on_ranks(num_ranks, start, "merged", *merged(files))
    for (lines, expected), (found, state) in zip(whole, ours, strict=True):
        assert len(found) == NUM_STEPS
        for name in ("loss", "margin_mean"):
            assert [found[s][name] for s in found] == [lines[s][name] for s in lines]
        assert expected.keys() == state.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(state[name], value, err_msg=name)


def test_a_checkpoint_of_the_merged_set_goes_on_with_the_map_and_with_no_other(
    config, files, tmp_path
):
    fit(config, "run.steps=2")
    fit(config, "run.steps=4", *merged(files))
    fit(config, "run.steps=6")
    (tmp_path / "other.tsv").write_text("4\t1\n")
    with pytest.raises(ValueError, match=r"data\.train was 35 images of 9 classes in") as caught:
        fit(config, "run.steps=7", *merged(files), f"data.merge={tmp_path}/other.tsv")
    assert "and is 35 images of 10 classes in a.rec, b.rec" in str(caught.value)
    assert "run.accept_changes=[data.train]" in str(caught.value)


def test_check_and_plan_count_the_people(config, files, monkeypatch, capsys):
    read = load_config(config, merged(files))
    assert counted(read) == [(9, 35)]
    numbers = derived_numbers(build_job(read, torch.device("cpu")))
    assert (numbers["classes"], numbers["images"], numbers["classes_per_rank"]) == (9, 35, [9])
    second = {"classes": 5, "images": 15, "joined_classes": 2, "joined_images": 6}
    assert numbers["merged"]["b"] == second
    json.dumps(numbers)
    command = ["plan.py", str(config), *merged(files), "--gpus", "2", "--json", "-"]
    monkeypatch.setattr("sys.argv", command)
    runpy.run_path(str(ROOT / "tools/plan.py"), run_name="__main__")
    assert json.loads(capsys.readouterr().out)["classes"] == 9
    seconds = runpy.run_path(str(ROOT / "tools/benchmark_step.py"))["seconds_per_batch"]
    assert seconds(read, torch.device("cpu")) > 0
    elsewhere = load_config(config, [*merged(files), "data.train.b.path=elsewhere.rec"])
    assert seconds(elsewhere, torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.merge={a-x: m}", "data.merge has a map of 'a-x': expected two of the datasets a, b"),
        ("data.merge={b-b: m}", "data.merge has a map of 'b-b': expected two of the datasets a, b"),
        ("data.train.c={path: c.rec}", "is one map, and data.train names 3 datasets: say of which"),
        ("data.train.b.share=0.5", "data.train.b.share is set, but data.merge makes one set of"),
        ("data.train.a.init=runs/x", "data.train.a.init is set, but data.merge makes one set of"),
        ("data.train.b.path=null", "data.train.b.path is not set: give a .rec file"),
        ("data.train=a.rec", "data.merge is 'm', but data.train names one dataset: leave"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(config, override, message):
    two = ["data.train={a: {path: a.rec}, b: {path: b.rec}}", "data.merge=m"]
    with pytest.raises(ValueError, match=r".") as caught:
        load_config(config, [*two, override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_user_reads_one_line(config, files, tmp_path):
    (tmp_path / "map.tsv").write_text("6\t1\n")
    given = [*merged(files), f"data.merge={{a-b: {tmp_path}/map.tsv}}"]
    line = exit_line("launch/train.py", config, *given, "--check")
    assert line == (
        f"error: {tmp_path}/map.tsv, line 1 names class 6 of a, and there are 6: classes run from 0"
        " to 5"
    )
