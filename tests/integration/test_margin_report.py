"""The margin report of a small run."""

import json
import shutil

import numpy as np
import pytest
import scipy.stats
import yaml
from PIL import Image

from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.recordio import RecordWriter
from kappaface_dist.margin_study.margin_report import average_ranks, read_measures, spearman
from kappaface_dist.training.metrics_file import read_metrics
from tests.commands import exit_line, python, torchrun
from tests.integration.test_datasets import fit
from tests.integration.test_label_report import call

TOOL = "tools/margin_report.py"


@pytest.fixture(scope="module")
def run_folder(faces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    config = folder.parent / "config.yaml"
    config.write_text(
        f"run: {{folder: {folder}, epochs: 3}}\n"
        f"data: {{train: {faces}/train.rec, batch_size: 12, image_size: 32}}\n"
        "backbone: {name: tiny, embedding_size: 32}\n"
        "margin: {name: kappaface, scale: 16}\n"
        "log: {every: 5, tensorboard: false}\n"
        "checkpoint: {every: 20, keep: 3}\n"
    )
    done = torchrun(2, "launch/train.py", config)
    assert done.returncode == 0, done.stderr
    return folder


def test_report(run_folder, faces):
    done = python(TOOL, run_folder, "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    count_C = open_catalog(faces / "train.rec").count_C
    classes = read_measures(run_folder)
    margin_C, kappa_C = classes.margin_C, classes.kappa_C
    related = report["correlation"]
    assert related["margin_with_images_spearman"] == pytest.approx(
        scipy.stats.spearmanr(margin_C, count_C).statistic
    )
    assert related["margin_with_log_images_pearson"] == pytest.approx(
        scipy.stats.pearsonr(margin_C, np.log(count_C)).statistic
    )
    assert related["margin_with_log_images_pearson"] < -0.3
    assert sum(row["classes"] for row in report["by_images"]) == len(count_C)
    assert [entry["class"] for entry in report["hardest"]] == np.argsort(kappa_C)[:8].tolist()
    assert report["easiest"][0]["concentration"] == pytest.approx(kappa_C.max())
    assert report["neutral_share"] == 0
    names = {"margins.png", "concentrations.png", "identities.png", "report.md", "reliability.png"}
    names.add("hard_or_dirty.png")
    assert {path.name for path in (run_folder / "margins").iterdir()} == names
    for name in ("margins.png", "concentrations.png"):  # the run's own are these
        drawn = (run_folder / "margins" / name).read_bytes()
        assert (run_folder / "plots" / name).read_bytes() == drawn, name
    text = (run_folder / "margins" / "report.md").read_text()
    assert "![identities](identities.png)" in text
    found = report["reliability"]
    assert 100 < found["embedded"] <= 2000
    sizes = [row["images"] for row in found["by_images"]]
    assert sizes == sorted(sizes)
    assert found["estimates"] == []  # who has twelve photos is too few
    assert (count_C >= 12).sum() < 20
    for row in found["by_images"]:
        assert row["classes"] == (count_C >= 2 * row["images"]).sum()
        assert row["error"] > 0
    assert 0 < found["noise_share"] <= 1
    assert f"{found['noise_share']:.0%} is sampling error" in text


HARD, DIRTY, STRAYS, PHOTOS = range(4), range(4, 8), 4, 12


@pytest.fixture
def planted(write_config, tmp_path):
    """A run on 24 plain patterns: of four classes the photos differ much, in four others 4 of 12
    are another's.
    """
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 255, (24, 4, 4, 3))
    label = np.repeat(np.arange(24), PHOTOS)
    shown = label.copy()
    stray = np.isin(label, DIRTY) & (np.arange(len(label)) % PHOTOS < STRAYS)
    shown[stray] = rng.permutation(np.arange(8, 24))[: stray.sum()]
    with RecordWriter(tmp_path / "planted") as writer:
        for number, person in zip(label.tolist(), shown.tolist(), strict=True):
            own = rng.integers(0, 255, looks[0].shape)
            mixed = 0.7 * looks[person] + 0.3 * own if person in HARD else looks[person]
            pixels = np.kron(mixed, np.ones((8, 8, 1))) + rng.normal(0, 10, (32, 32, 3))
            writer.write(number, encode_jpeg(pixels.clip(0, 255).astype(np.uint8)))
    config = write_config(
        run={"steps": 60},
        data={"batch_size": 24, "train": str(tmp_path / "planted.rec"), "augment": "none"},
        backbone={"name": "tiny_gn", "embedding_size": 32},
        checkpoint={"every": 60},
    )
    fit(config)
    shutil.copy(config, tmp_path / "run" / "config.yaml")
    return tmp_path / "run"


def test_a_hard_class_and_a_dirty_one_are_told_apart(planted, capsys):
    folder = planted
    call(TOOL, folder, "--json", folder / "report.json")
    report = json.loads((folder / "report.json").read_text())
    # By their concentrations they are one kind.
    assert {entry["class"] for entry in report["hardest"]} == {*HARD, *DIRTY}
    found = {entry["class"]: entry for entry in report["noise"]["classes"]}
    assert {c for c, entry in found.items() if entry["kind"] == "dirty"} == set(DIRTY)
    # Photos that differ may look like two people's; the class is hard without one of them, too.
    assert {found[c]["kind"] for c in HARD} <= {"hard", "both"}
    assert {entry["wrong"] for c, entry in found.items() if c not in (*HARD, *DIRTY)} == {0}
    for c in DIRTY:
        assert (found[c]["kind"], found[c]["wrong"]) == ("dirty", STRAYS)
        assert found[c]["without_wrong"] > 2 * found[c]["concentration_of_photos"]
    assert report["noise"]["wrong"] == sum(entry["wrong"] for entry in found.values())
    text = capsys.readouterr().out
    rows = [line.split(" | ") for line in text.splitlines() if line.endswith("| dirty |")]
    expected = [(c, f"{STRAYS} of {PHOTOS}") for c in DIRTY]
    assert sorted((int(row[0][2:]), row[4]) for row in rows) == expected
    # Framed in red, four photos of each dirty class.
    pixels = np.asarray(Image.open(folder / "margins" / "identities.png").convert("RGB"))
    red = (pixels == (214, 39, 40)).all(axis=2)
    assert red.any(axis=1).sum() > 4 * len(DIRTY)
    assert (folder / "margins" / "hard_or_dirty.png").stat().st_size > 10_000
    # Photos of the hardest classes are embedded in any case, those of the others not.
    call(TOOL, folder, "--embed", 1, "--json", folder / "few.json")
    few = json.loads((folder / "few.json").read_text())
    assert few["reliability"]["embedded"] == 0
    assert {entry["class"] for entry in few["noise"]["classes"]} == {*HARD, *DIRTY}


def test_metrics_follow_the_concentrations(run_folder):
    """Two ranks add up their histograms; numpy has all classes of the checkpoint."""
    lines = [x for x in read_metrics(run_folder / "metrics.jsonl") if "concentration_p50" in x]
    assert len({line["concentration_p50"] for line in lines}) == 3
    kappa_C = read_measures(run_folder).kappa_C
    for name, share in (("p05", 5), ("p50", 50), ("p95", 95)):
        expected = np.percentile(kappa_C, share, method="inverted_cdf")
        # Bins are less than 2 % wide.
        assert lines[-1][f"concentration_{name}"] == pytest.approx(expected, rel=0.02)


@pytest.mark.long
def test_an_earlier_checkpoint_has_its_own_report(run_folder, tmp_path):
    first, *_, last = sorted((run_folder / "checkpoints").iterdir())
    done = python(TOOL, first, "--out", tmp_path, "--json", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["step"] == int(first.name.removeprefix("step_")) < int(last.name[5:])
    assert "| hardest classes |" in done.stdout
    few = python(TOOL, first, "--out", tmp_path, "--embed", 0)
    assert "not measured, no photo was embedded (--embed)" in few.stdout
    assert exit_line(TOOL, first, "--embed", -1) == "error: --embed is -1, expected 0 or more"


def test_average_ranks():
    values = np.random.default_rng(0).integers(0, 20, 200)
    other = values + np.random.default_rng(1).integers(0, 20, 200)
    np.testing.assert_array_equal(average_ranks(values), scipy.stats.rankdata(values))
    expected = scipy.stats.spearmanr(values, other).statistic
    assert spearman(values, other) == pytest.approx(expected)
    assert spearman(values, np.ones(200)) is None


def test_wrong_input_is_one_line(run_folder, faces, tmp_path):
    fixed = tmp_path / "fixed"
    shutil.copytree(run_folder, fixed)
    config = yaml.safe_load((fixed / "config.yaml").read_text())
    config["margin"] = {"name": "arcface"}
    (fixed / "config.yaml").write_text(yaml.safe_dump(config))
    alone = tmp_path / "alone" / "step"
    shutil.copytree(sorted((run_folder / "checkpoints").iterdir())[0], alone)
    for person in ("a", "b"):
        folder = tmp_path / "two" / person
        folder.mkdir(parents=True)
        for image in range(2):
            shutil.copy(faces / "sheet.png", folder / f"{image}.png")
    for arguments, message in (
        ((tmp_path,), "neither a complete checkpoint nor a run folder"),
        ((fixed,), "was trained with margin.name=arcface"),
        ((alone,), "is a checkpoint without its run"),
        ((run_folder, "--train", tmp_path / "two"), "has 2 classes, the checkpoint 30"),
    ):
        line = exit_line(TOOL, *arguments)
        assert line.startswith("error: ")
        assert message in line
        assert "\n" not in line
