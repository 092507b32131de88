"""ONNX of every backbone, run by onnxruntime and compared with PyTorch by the test itself."""

import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from kappaface_dist.backbones import BACKBONES
from kappaface_dist.models.export import BackboneSettings
from kappaface_dist.models.onnx_export import OPSET, compare, export_onnx
from tests.unit.backbones.calibrated import calibrated_backbone

# One of each kind; KAPPAFACE_ALL_BACKBONES=1 exports the others as well, which repeat its blocks.
KINDS = ("tiny", "tiny_gn", "r18", "mbf", "vit_t")
CHOSEN = BACKBONES if os.environ.get("KAPPAFACE_ALL_BACKBONES") else KINDS


@pytest.mark.timeout(1800)  # r200 on a busy machine
@pytest.mark.parametrize("name", CHOSEN)
def test_every_backbone_is_within_a_ten_thousandth(name, tmp_path):
    model = calibrated_backbone(name)
    path = tmp_path / "x.onnx"
    found = export_onnx(path, model, BackboneSettings(name, 64, 32))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 7, 64):
        image = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch)) * 2 - 1
        with torch.no_grad():
            expected = model(image).numpy()
        (embedding,) = session.run(["embedding"], {"image": image.numpy()})
        assert embedding.shape == (batch, 64)
        assert np.abs(embedding - expected).max() < 1e-4
        assert np.abs(expected).max() > 0.5  # the tolerance means something
    assert found.difference < 1e-4
    assert found.batches == (1, 2, 7, 64)
    stored = onnx.load(path)
    assert [entry.version for entry in stored.opset_import if entry.domain == ""] == [OPSET]
    facts = {entry.key: entry.value for entry in stored.metadata_props}
    assert (facts["name"], facts["image_size"]) == (name, "32")
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


@pytest.mark.long
def test_half_precision_is_half_the_size_and_near(tmp_path):
    model, settings = calibrated_backbone("r18"), BackboneSettings("r18", 64, 32)
    export_onnx(tmp_path / "full.onnx", model, settings)
    found = export_onnx(tmp_path / "half.onnx", model, settings, half=True)
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.55 * sizes[1]
    assert 1e-5 < found.difference < 2e-2
    assert found.cosine > 0.9999
    types = {each.data_type for each in onnx.load(tmp_path / "half.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types


def test_what_float16_cannot_hold_is_not_written(tmp_path):
    model = calibrated_backbone("tiny")
    with torch.no_grad():
        model.conv1.weight.mul_(1e6)  # 1e6 is beyond float16, and BN does not know
    path = tmp_path / "x.onnx"
    with pytest.raises(RuntimeError, match=r"x\.onnx: in float16 a cosine .* use fp32"):
        export_onnx(path, model, BackboneSettings("tiny", 64, 32), half=True)
    assert not list(tmp_path.iterdir())


def test_comparison_sees_a_difference():
    class Mean(nn.Module):
        def forward(self, image_B3HW):
            return image_B3HW.mean(dim=(2, 3))

    settings = BackboneSettings("tiny", 3, 8)
    assert compare(lambda x: x.mean(axis=(2, 3)), Mean(), settings).difference < 1e-6
    assert compare(lambda x: x.mean(axis=(2, 3)) + 1e-3, Mean(), settings).difference > 9e-4
    assert compare(lambda x: -x.mean(axis=(2, 3)), Mean(), settings).cosine < -0.99
    # A batch that the model mixes up, or a size it was frozen to.
    assert compare(lambda x: x.mean(axis=(2, 3))[:2], Mean(), settings).cosine == -1.0
    assert compare(lambda x: x.mean(axis=(2, 3)) * np.nan, Mean(), settings).cosine == -1.0
