"""The same problem or a refusal, as a user meets it: the command, the folder, the checks."""

import shutil

import pytest
import yaml

from kappaface_dist.config.file import load_config
from kappaface_dist.made_up_faces.dataset import write_faces
from tests.commands import exit_line, python

TRAIN = "launch/train.py"


@pytest.fixture(scope="module")
def trained(faces, tmp_path_factory):
    """A run of two steps, and the file that it was started with."""
    folder = tmp_path_factory.mktemp("trained")
    content = {
        "run": {"folder": str(folder / "run"), "steps": 2},
        "data": {"train": str(faces / "train.rec"), "batch_size": 12, "image_size": 32},
        "backbone": {"name": "tiny", "embedding_size": 32},
        "margin": {"name": "kappaface", "scale": 16},
        "log": {"every": 1, "tensorboard": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    done = python(TRAIN, folder / "config.yaml")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run, as a start that goes on in it."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return [trained / "config.yaml", f"run.folder={tmp_path}/run", "run.steps=3"]


def test_another_problem_is_refused_and_nothing_is_overwritten(run, tmp_path):
    other = tmp_path / "other"  # other people, as many as in the run
    write_faces(other, num_identities=30, num_unseen=2, seed=2, image_size=32, processes=2)
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.name == "config.yaml"}
    assert before
    for override, said in (
        (f"data.train={other}/train.rec", "data.train was "),
        ("backbone.name=tiny_gn", "backbone.name was tiny and is tiny_gn"),
        ("margin.scale=32", "margin.scale was 16 and is 32"),
        ("run.seed=1", "run.seed was 0 and is 1"),
    ):
        line = exit_line(TRAIN, *run, override)
        assert line.startswith("error: checkpoint ")
        assert said in line
        assert f"set run.accept_changes=[{override.partition('=')[0]}]" in line
        assert "\n" not in line
        assert all(path.read_bytes() == content for path, content in before.items())


def test_on_purpose_it_goes_on_and_the_folder_remembers(run, tmp_path):
    changes = ["margin.scale=32", "optimizer.lr=0.05", "run.accept_changes=[margin.scale]"]
    done = python(TRAIN, *run, *changes)
    assert done.returncode == 0, done.stderr
    assert "on purpose: margin.scale was 16 and is 32" in done.stderr
    assert "changed since step_00000002: optimizer.lr was 0.1 and is 0.05" in done.stderr
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "at step 2: margin.scale was 16 and is 32\n" in text
    assert load_config(tmp_path / "run" / "config.yaml").optimizer.lr == 0.05
    # The new checkpoint is of the new problem.
    line = exit_line(TRAIN, *run, "run.steps=4")
    assert "margin.scale was 32 and is 16" in line


def test_print_config_shows_what_applies_to_the_margin(run):
    done = python(TRAIN, *run, "--print-config", "run.name=0123")
    shown = yaml.safe_load(done.stdout)
    assert (shown["run"]["name"], shown["margin"]["scale"]) == ("0123", 16)
    assert shown["margin"]["temperature"] == 0.4
    assert shown["margin"]["statistic"] == "resultant"
    assert "margin.skale" in exit_line(TRAIN, *run, "--print-config", "margin.skale=1")


def test_check_finds_what_training_would_stumble_over(run, faces, tmp_path):
    line = exit_line(TRAIN, *run, "--check", "data.batch_size=1")
    assert "data.batch_size is 1, and the BatchNorm of tiny needs two images" in line
    (tmp_path / "one" / "person").mkdir(parents=True)
    for number in range(3):
        shutil.copy(faces / "sheet.png", tmp_path / "one" / "person" / f"{number}.png")
    line = exit_line(TRAIN, *run, "--check", f"data.train={tmp_path}/one")
    assert "has images of 1 class" in line
    line = exit_line(TRAIN, *run, "--check", "margin.temperature=nan")
    assert "margin.temperature is nan: it must be a finite number" in line
