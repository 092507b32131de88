"""make_pairs.py and evaluate.py as a user starts them, on a folder of real or of made-up images."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kappaface_dist.backbones import build_backbone
from kappaface_dist.data.images import decode_image, encode_jpeg
from kappaface_dist.evaluation.sets.pair_file import read_pairs
from kappaface_dist.models.export import save_backbone
from kappaface_dist.models.saved_model import open_model

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def start(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 4 identities with 5 photos of 24 x 24 pixels, each with a look of its own."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for identity in range(4):
        (root / f"s{identity}").mkdir()
        look = generator.integers(40, 216, (6, 6, 3))
        for number in range(1, 6):
            pixels = np.clip(look + generator.normal(0, 30, (6, 6, 3)), 0, 255).astype(np.uint8)
            payload = encode_jpeg(pixels.repeat(4, 0).repeat(4, 1))
            (root / f"s{identity}" / f"{number}.jpg").write_bytes(payload)
    return root


def test_make_pairs_then_evaluate_on_one_and_two_processes(photos, tmp_path):
    made = start("tools/make_pairs.py", photos, tmp_path / "a.bin", "--image-size", 24, "--json=-")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout) == {
        "identities": 4, "images": 20, "pairs": 80, "same_pairs": 40, "pairs_left_out": 0,
        "left_out": [],
    }  # fmt: skip
    pairs = read_pairs(tmp_path / "a.bin")
    # Photos that are JPEGs of the asked size are stored as they are.
    assert set(pairs.payloads) == {path.read_bytes() for path in photos.glob("*/*.jpg")}

    torch.manual_seed(0)
    model = build_backbone("tiny", embedding_size=16, image_size=24)
    exported = tmp_path / "backbone.safetensors"
    save_backbone(exported, model, name="tiny", embedding_size=16, image_size=24)
    command = ["tools/evaluate.py", exported, "--set", f"a={tmp_path / 'a.bin'}", "--batch-size=4"]
    one = start(*command, "--json", tmp_path / "one.json", "--plot", tmp_path / "roc.png")
    two = start(*TORCHRUN, *command, "--json", tmp_path / "two.json")
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    assert one.stdout == two.stdout
    report = json.loads((tmp_path / "one.json").read_text())
    found = report["sets"]["a"]
    assert report["backbone"] == "tiny"
    assert 0.5 < found["accuracy"] <= 1
    assert 0.5 < report["baselines"]["pixels"]["a"] <= 1
    assert found["tar_at_far"].keys() == {f"1e-{digit}" for digit in range(1, 7)}
    header, row, note, rates, thresholds = one.stdout.splitlines()
    assert rates.endswith("FAR 1e-1")
    assert f" {found['threshold_at_far']['1e-1']:.3f} [" in thresholds
    assert header.split()[:3] == ["set", "pairs", "accuracy"]
    assert row.split()[:3] == ["a", "80", f"{100 * found['accuracy']:.2f}"]
    assert note.startswith("a: 40 different pairs are not enough for FAR 1e-2")
    assert (tmp_path / "roc.png").stat().st_size > 1000


def test_make_pairs_from_a_list(photos, tmp_path):
    listed = tmp_path / "pairs.txt"
    listed.write_text("1 1\ns0 1 5\ns1 2 s3 4\n")
    out = tmp_path / "set.bin"
    made = start("tools/make_pairs.py", photos, out, "--pairs", listed, "--image-size", 16)
    assert made.returncode == 0, made.stderr
    assert "2 pairs (1 same) of 4 images" in made.stdout
    pairs = read_pairs(out)
    assert pairs.same_P.tolist() == [True, False]
    names = ["s0/1", "s0/5", "s1/2", "s3/4"]
    for name, payload in zip(names, pairs.payloads, strict=True):
        photo = decode_image((photos / f"{name}.jpg").read_bytes(), 16).astype(int)
        assert np.abs(decode_image(payload, 16).astype(int) - photo).mean() < 4


def test_make_pairs_says_who_and_fills_the_folds(photos, tmp_path):
    """A one-fold list with a mark, of three of the folder's four people."""
    same = [f"s{k % 3}\t{1 + k // 3}\t{2 + k // 3}" for k in range(12)]
    different = [f"s{k % 3}\t{1 + k // 3}\ts{(k + 1) % 3}\t{1 + k // 3}" for k in range(12)]
    listed = tmp_path / "pairs.txt"
    listed.write_text("\ufeff12\n" + "\n".join(same + different) + "\n\n", encoding="utf-8")
    out = tmp_path / "set.bin"
    made = start("tools/make_pairs.py", photos, out, "--pairs", listed, "--json", tmp_path / "r")
    assert made.returncode == 0, made.stderr
    assert "24 pairs (12 same) of 15 images of 3 identities, of 4 in the folder" in made.stdout
    assert "folds would hold one kind of pairs only" in made.stdout
    report = json.loads((tmp_path / "r").read_text())
    assert (report["identities"], report["identities_in_folder"]) == (3, 4)
    pairs = read_pairs(out)
    assert pairs.same_P.tolist() == [True, False] * 12
    assert sorted(pairs.names.names) == ["s0", "s1", "s2"]
    assert [pairs.names.of_pair(2 * k)[0] for k in range(12)] == [row[:2] for row in same]
    wanted = [tuple(row.split("\t")[::2]) for row in different]
    assert [pairs.names.of_pair(2 * k + 1) for k in range(12)] == wanted


def test_an_unreadable_image_is_left_out_and_groups_are_of_people(photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "s0" / "3.jpg").write_bytes(b"broken")
    out = tmp_path / "set.bin"
    made = start("tools/make_pairs.py", folder, out, "--image-size", 24, "--json=-")
    assert made.returncode == 0, made.stderr
    report = json.loads(made.stdout)
    assert [each["image"] for each in report["left_out"]] == [str(folder / "s0" / "3.jpg")]
    pairs = read_pairs(out)
    assert pairs.num_pairs == report["pairs"] == 80 - report["pairs_left_out"]
    assert pairs.same_P.sum() == 40 - 4
    person_of = {path.read_bytes(): path.parent.name for path in photos.glob("*/*.jpg")}
    listed = [name for number in range(pairs.num_pairs) for name in pairs.names.of_pair(number)]
    assert listed == [person_of[payload] for payload in pairs.payloads]


def test_mistakes_end_with_one_line(photos, tmp_path):
    broken = tmp_path / "broken"
    for identity in ("a", "b"):
        (broken / identity).mkdir(parents=True)
        for number in (1, 2):
            (broken / identity / f"{number}.jpg").write_bytes(b"\xff\xd8 no more")
    exported = tmp_path / "backbone.safetensors"
    exported.write_bytes(b"nothing")
    for command, message in (
        (["tools/make_pairs.py", broken, tmp_path / "x.bin"], "1.jpg: not a readable image"),
        (["tools/make_pairs.py", photos, "x.bin", "--image-size=0"], "--image-size is 0, expected"),
        (["tools/evaluate.py", exported, "--set", "lfw"], "--set is 'lfw', expected NAME=PATH"),
        (["tools/evaluate.py", exported, "--set", "a=b", "--set", "a=c"], "names 'a' twice"),
    ):
        ended = start(*command)
        assert ended.returncode == 1
        assert message in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "x.bin").exists()
    ended = start(*TORCHRUN, "tools/evaluate.py", exported, "--set", "a=b")
    assert ended.returncode != 0
    assert ended.stderr.count("error: ") >= 2
    assert "not a readable safetensors file" in ended.stderr


@pytest.mark.long
def test_a_run_folder_its_checkpoint_and_its_export_are_one_model(photos, tmp_path):
    bins = tmp_path / "a.bin"
    assert start("tools/make_pairs.py", photos, bins, "--image-size", 24).returncode == 0
    config = tmp_path / "run.yaml"
    config.write_text(
        f"run: {{name: x, folder: {tmp_path / 'run'}, steps: 3}}\n"
        f"data: {{train: {photos}, batch_size: 8, image_size: 24}}\n"
        "backbone: {name: tiny, embedding_size: 16}\nmargin: {name: arcface}\n"
        "log: {tensorboard: false}\n"
    )
    trained = start("launch/train.py", config)
    assert trained.returncode == 0, trained.stderr
    run = tmp_path / "run"
    reports = []
    for model in (run, run / "checkpoints" / "step_00000003", run / "export/backbone.safetensors"):
        out = tmp_path / "out.json"
        command = ["tools/evaluate.py", model, "--set", f"a={bins}", "--json", out]
        # Two processes read the checkpoint as well as one.
        launcher = TORCHRUN if model == run else []
        ended = start(*launcher, *command, "--bootstrap", 20, "--report", tmp_path / "report")
        assert ended.returncode == 0, ended.stderr
        reports.append(json.loads(out.read_text()))
    for report in reports[1:]:
        assert report["weights_sha256"] == reports[0]["weights_sha256"]
        assert report["sets"] == reports[0]["sets"]
    assert reports[0]["model"].endswith("step_00000003")
    low, high = reports[0]["sets"]["a"]["intervals"]["auc"]
    assert low <= reports[0]["sets"]["a"]["auc"] <= high
    assert "embedding_size: 16" in (tmp_path / "report" / "report.html").read_text()

    # A checkpoint says itself which network it is of.
    (run / "config.yaml").rename(tmp_path / "config.yaml")
    assert open_model(run).digest == reports[0]["weights_sha256"]
    ended = start("tools/evaluate.py", photos, "--set", f"a={bins}")
    assert ended.returncode == 1
    assert "is neither a checkpoint nor a run folder with one" in ended.stderr
