"""Exported backbones: what comes back, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file

from kappaface_dist.backbones import build_backbone
from kappaface_dist.models.export import BackboneSettings, load_backbone, save_backbone

SETTINGS = {"name": "tiny", "embedding_size": 16, "image_size": 32}


def test_round_trip(tmp_path):
    model = build_backbone("tiny", embedding_size=16, image_size=32)
    model = model.to(memory_format=torch.channels_last)
    image = torch.randn(3, 3, 32, 32)
    model(image)  # moves the running statistics away from their start, where there are any
    path = tmp_path / "export" / "backbone.safetensors"
    save_backbone(path, model, **SETTINGS)
    loaded, settings = load_backbone(path)
    assert settings == BackboneSettings(**SETTINGS)
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(image), model.eval()(image))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_mistakes_are_named(tmp_path):
    path = tmp_path / "backbone.safetensors"
    with pytest.raises(OSError, match="is not a file"):
        load_backbone(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_backbone(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"metadata \{\}, expected name"):
        load_backbone(path)
    metadata = {key: str(value) for key, value in SETTINGS.items()}
    save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(ValueError, match=r"does not hold a tiny of 16 .* a is .*expected none"):
        load_backbone(path)
    model = build_backbone("tiny", embedding_size=16, image_size=32)
    save_backbone(path, model, **SETTINGS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is the file complete"):
        load_backbone(path)


def test_depths_and_widths_come_back(tmp_path):
    shape = {"depths": [1, 2, 1, 1], "widths": [8, 16, 24, 32]}
    model = build_backbone("tiny", embedding_size=16, image_size=32, **shape)
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, model, **SETTINGS, **shape)
    loaded, settings = load_backbone(path)
    assert settings == BackboneSettings(**SETTINGS, **shape)
    assert [len(loaded.get_submodule(f"layer{i}")) for i in (1, 2, 3, 4)] == [1, 2, 1, 1]
