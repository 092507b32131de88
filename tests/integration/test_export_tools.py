"""export.py, import_backbone.py and the Python call, as a user meets them."""

import json

import numpy as np
import pytest
import torch

from kappaface_dist.data.images import decode_image, encode_jpeg
from kappaface_dist.models.embedder import load_embedder
from kappaface_dist.models.export import load_backbone, save_backbone
from tests.integration.test_verification_tools import start
from tests.unit.backbones.calibrated import calibrated_backbone


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder that export.py makes, and the model."""
    folder = tmp_path_factory.mktemp("export")
    model = calibrated_backbone("tiny", 16, 32)
    source = folder / "source.safetensors"
    save_backbone(source, model, name="tiny", embedding_size=16, image_size=32)
    results = {"sets": {"lfw": {
        "accuracy": 0.9123, "accuracy_std": 0.01, "auc": 0.95, "eer": 0.08, "num_pairs": 6000,
        "tar_at_far": {"1e-1": 0.9, "1e-2": 0.8, "1e-3": 0.7, "1e-4": None},
    }}}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    ended = start(
        "tools/export.py", source, folder / "out", "--evaluation", folder / "results.json",
        "--json", folder / "report.json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return folder, model


def test_files_and_card(exported):
    folder, _ = exported
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {
        "backbone.safetensors", "backbone.pt2", "backbone.onnx", "backbone_fp16.onnx",
        "model_card.md",
    }  # fmt: skip
    report = json.loads((folder / "report.json").read_text())
    card = (folder / "out" / "model_card.md").read_text()
    assert f"`{report['weights_sha256']}`" in card
    assert "| lfw | 6000 | 91.23 ± 1.00 | 95.00 | 8.00 | 90.00 | 80.00 | 70.00 | – |" in card
    assert "the weights came without their run" in card
    assert report["files"]["backbone.onnx"]["difference"] < 1e-4
    assert all(name in card for name in names - {"model_card.md"})


def test_the_torch_program_takes_any_batch(exported):
    folder, model = exported
    program = torch.export.load(folder / "out" / "backbone.pt2").module()
    for batch in (1, 5):
        image = torch.rand(batch, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(program(image), model(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("file", ["backbone.safetensors", "backbone.onnx", "backbone_fp16.onnx"])
def test_load_embed_compare(exported, file, tmp_path):
    folder, model = exported
    embedder = load_embedder(folder / "out" / file)
    assert (embedder.image_size, embedder.embedding_size) == (32, 16)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    payload = encode_jpeg(pixels[2])
    (tmp_path / "c.jpg").write_bytes(payload)
    found = embedder.embed([pixels[0], payload, tmp_path / "c.jpg", pixels[1]], batch_size=3)
    decoded = decode_image(payload, 32)
    for row, each in zip(found, [pixels[0], decoded, decoded, pixels[1]], strict=True):
        image = (torch.from_numpy(each.copy()).float() / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = (model(image) + model(image.flip(3)))[0].numpy()
        np.testing.assert_allclose(
            row, expected / np.linalg.norm(expected), atol=3e-3 if "fp16" in file else 1e-5
        )
    assert embedder.compare(found[1], found[2]) == pytest.approx(1, abs=1e-6)
    cosine = found[0].astype(float) @ found[3].astype(float)
    assert embedder.compare(5 * found[0], found[3]) == pytest.approx(cosine, abs=1e-6)
    assert embedder.embed([]).shape == (0, 16)
    larger = np.zeros((40, 60, 3), np.uint8)
    assert embedder.embed([larger]).shape == (1, 16)
    for picture, message in (
        (np.zeros((8, 8)), "a picture is an array of float64"),
        (b"broken", "not a readable image"),
    ):
        with pytest.raises(ValueError, match=message):
            embedder.embed([picture])
    (tmp_path / "bad.jpg").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"bad\.jpg: not a readable image"):
        embedder.embed([tmp_path / "bad.jpg"])


def test_models_that_are_none(exported, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a readable ONNX model"):
        load_embedder(tmp_path / "x.onnx")
    with pytest.raises(FileNotFoundError, match=r"expected an exported backbone\.onnx"):
        load_embedder(tmp_path / "y.onnx")
    ended = start("tools/export.py", exported[0] / "source.safetensors", tmp_path, "--formats=tf")
    assert ended.returncode == 1
    assert "--formats names tf, known are safetensors, torch, onnx, onnx-fp16" in ended.stderr


@pytest.mark.long
def test_import_backbone(exported, tmp_path):
    _, model = exported
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "good.pth")
    out = tmp_path / "x.safetensors"
    ended = start("tools/import_backbone.py", tmp_path / "good.pth", out, "--image-size=32")
    assert ended.returncode == 0, ended.stderr
    loaded, settings = load_backbone(out)
    assert settings.name == "tiny"
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    del state["module.bn1.weight"]
    torch.save(state, tmp_path / "bad.pth")
    out = tmp_path / "y.safetensors"
    command = ["tools/import_backbone.py", tmp_path / "bad.pth", out, "--image-size=32"]
    ended = start(*command)
    assert ended.returncode == 1
    assert "1 not in the file: bn1.weight" in ended.stdout
    assert "nothing is written" in ended.stderr
    assert not out.exists()
    ended = start(*command, "--partial")
    assert ended.returncode == 0
    assert out.exists()
