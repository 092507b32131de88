"""Our exports in onnxruntime 1.19 and current, OpenCV, OpenVINO and insightface's own package.

`make test-clients` makes their environment; without it the tests are skipped. One network of each
kind; the others, which take minutes each, with LONG_TESTS=1. `-s` prints the differences.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from kappaface_dist.backbones import BACKBONES
from kappaface_dist.models import onnx_export
from kappaface_dist.models.export import BackboneSettings
from kappaface_dist.models.exported import read_onnx
from tests.commands import ROOT
from tests.unit.backbones.calibrated import calibrated_backbone

PYTHON = Path(os.environ.get("CLIENTS_PYTHON", ROOT / ".venv-clients" / "bin" / "python"))

pytestmark = pytest.mark.skipif(
    not PYTHON.is_file(), reason=f"there are no clients: `make test-clients` makes {PYTHON}"
)
SIZE = 112  # insightface's package knows a recognition model by it
KINDS = ("tiny", "tiny_gn", "r18", "mbf", "vit_t")
LARGER = [pytest.param(name, marks=pytest.mark.long) for name in BACKBONES if name not in KINDS]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [*KINDS, *LARGER])
def test_embeddings_are_ours(name, monkeypatch, tmp_path):
    # Batches of 64 are compared with PyTorch for a small network elsewhere.
    monkeypatch.setattr(onnx_export, "CHECKED_BATCHES", (1, 2))
    model = calibrated_backbone(name, 64, SIZE)
    path = tmp_path / "backbone.onnx"
    onnx_export.export_onnx(path, model, BackboneSettings(name, 64, SIZE))
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    image_B3HW = (pixels.transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 127.5
    with torch.no_grad():
        expected = unit(model(torch.from_numpy(image_B3HW)).double().numpy())
    done = subprocess.run(
        [PYTHON, ROOT / "tests" / "client_programs.py", path, tmp_path / "images.npy",
         tmp_path / "found.npz"],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    versions = json.loads(done.stdout.splitlines()[-1])
    assert versions["onnxruntime"].startswith("1.19.")
    found = dict(np.load(tmp_path / "found.npz"))
    found["onnxruntime, current"] = read_onnx(path)[0].run(image_B3HW)
    errors = {key: str(value) for key, value in found.items() if key.endswith(".error")}
    assert not errors
    assert len(found) == 5
    for program, embedding in found.items():
        difference = np.abs(unit(embedding.astype(np.float64)) - expected).max()
        print(f"{name:10} {program:21} {difference:.1e}")
        assert difference < 1e-5, (program, versions.get(program), difference)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
