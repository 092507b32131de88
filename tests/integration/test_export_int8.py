"""export.py --formats int8: the file, and a verdict that independent computations agree with."""

import json
import runpy
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.evaluation.sets.pair_file import write_pairs
from kappaface_dist.models.embedder import load_embedder
from kappaface_dist.models.export import save_backbone
from tests.commands import ROOT, exit_line
from tests.unit.backbones.calibrated import calibrated_backbone

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
TOOL = "tools/export.py"


def photo(person, number, noise=70):
    look = np.random.default_rng(person).integers(0, 256, (8, 8, 3))
    change = np.random.default_rng([person, number]).normal(0, noise, (8, 8, 3))
    pixels = np.clip(look + change, 0, 255).astype(np.uint8)
    return encode_jpeg(pixels.repeat(4, 0).repeat(4, 1))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, photos to calibrate with, and pairs of other people."""
    root = tmp_path_factory.mktemp("int8")
    model = calibrated_backbone("tiny", 32, 32)
    save_backbone(root / "x.safetensors", model, name="tiny", embedding_size=32, image_size=32)
    for person in range(30):
        (root / "photos" / f"p{person}").mkdir(parents=True)
        for number in range(2):
            (root / "photos" / f"p{person}" / f"{number}.jpg").write_bytes(photo(person, number))
    (root / "photos" / "p0" / "0.jpg").write_bytes(b"broken")
    pairs = [((p, 0), (p, 1)) for p in range(100, 130)]
    pairs += [((p, 0), (p + 1, 1)) for p in range(100, 129)] + [((129, 0), (100, 1))]
    payloads = [photo(*each) for pair in pairs for each in pair]
    same = [a[0] == b[0] for a, b in pairs]
    write_pairs(root / "a.bin", payloads, same, [(str(a[0]), str(b[0])) for a, b in pairs])
    return root, payloads, np.array(same)


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [TOOL, *map(str, arguments)])
    runpy.run_path(str(ROOT / TOOL), run_name="__main__")


def test_the_file_and_its_verdict(place, monkeypatch, tmp_path, caplog):
    root, payloads, same = place
    run_tool(
        monkeypatch, root / "x.safetensors", tmp_path, "--formats", "safetensors,int8",
        "--calibrate", root / "photos", "--set", f"a={root / 'a.bin'}", "--bootstrap", 20,
        "--most-loss", 0.2, "--json", tmp_path / "report.json",
    )  # fmt: skip
    entry = json.loads((tmp_path / "report.json").read_text())["files"]["backbone_int8.onnx"]
    numbers = entry["verdict"]["sets"]["a"]
    cosines = {}
    for side, file in (("float32", "backbone.safetensors"), ("file", "backbone_int8.onnx")):
        embedder = load_embedder(tmp_path / file)
        rows = embedder.embed(payloads).astype(np.float64)
        cosines[side] = (rows[::2] * rows[1::2]).sum(axis=1)
        assert numbers["AUC"][side] == pytest.approx(roc_auc_score(same, cosines[side]), abs=1e-3)
    difference = numbers["AUC"]["file"] - numbers["AUC"]["float32"]
    assert numbers["AUC"]["difference"] == pytest.approx(difference)
    low, high = numbers["AUC"]["interval"]
    assert low <= high
    # It is another arithmetic, and not far away.
    assert 1e-4 < np.abs(cosines["file"] - cosines["float32"]).max() < 0.2
    assert entry["calibration_images"] == 59
    assert [each["reason"][:20] for each in entry["unreadable"]] == ["not a readable image"]
    assert "left out of the calibration" in caplog.text
    graph = onnx.load(tmp_path / "backbone_int8.onnx").graph
    weights = {each.name: each.data_type for each in graph.initializer}
    assert onnx.TensorProto.INT8 in weights.values()
    scales = [list(each.dims) for each in graph.initializer if each.name.endswith("_scale")]
    assert any(dims and dims[0] > 1 for dims in scales)  # by channel
    assert entry["verdict"]["megabytes"]["file"] < entry["verdict"]["megabytes"]["float32"] / 2
    assert set(entry["verdict"]["images_per_second"]) == {"1", "32"}
    # Thresholds are the file's own.
    own = embedder.thresholds["a"]["1e-1"]
    assert np.isclose(cosines["file"], own, atol=1e-6).any()
    card = (tmp_path / "model_card.md").read_text()
    assert "static int8" in card
    assert "| a |" not in card
    assert f"{100 * numbers['accuracy']['file']:.2f}" in card


def test_a_loss_is_said_and_ends_with_1(place, tmp_path):
    root, *_ = place
    (tmp_path / "grey").mkdir()
    for number in range(10):  # ranges of one grey are no ranges for photos
        grey = np.full((32, 32, 3), 120 + number, dtype=np.uint8)
        (tmp_path / "grey" / f"{number}.jpg").write_bytes(encode_jpeg(grey))
    message = exit_line(
        TOOL, root / "x.safetensors", tmp_path / "out", "--formats=int8", "--bootstrap=0",
        "--calibrate", tmp_path / "grey", "--set", f"a={root / 'a.bin'}",
    )  # fmt: skip
    assert "backbone_int8.onnx: a: the accuracy falls from" in message
    assert "by more than 0.50%" in message
    assert (tmp_path / "out" / "backbone_int8.onnx").is_file()


def test_mistakes_are_one_sentence(place, tmp_path):
    root, *_ = place
    start = [TOOL, root / "x.safetensors", tmp_path / "out"]
    sets = ["--set", f"a={root / 'a.bin'}"]
    assert "which needs --calibrate DATA" in exit_line(*start, "--formats=int8", *sets)
    photos = ["--calibrate", root / "photos"]
    assert "which needs --set NAME=PATH" in exit_line(*start, "--formats=int8", *photos)
    assert "no format of --formats uses it" in exit_line(*start, "--formats=onnx", *sets)
    assert "expected a share from 0" in exit_line(
        *start, "--formats=int8", *sets, *photos, "--most-loss=2"
    )
    assert not (tmp_path / "out").exists()
