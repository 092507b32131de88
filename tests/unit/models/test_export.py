"""Exported backbones: what comes back, and what is refused."""

import random
import resource

import pytest
import torch
from safetensors.torch import save_file

from kappaface_dist.backbones import build_backbone
from kappaface_dist.models.export import (
    BackboneSettings,
    load_backbone,
    save_backbone,
    weights_digest,
)

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


def read(path):
    """(digest, settings) of an exported file, or a refusal."""
    try:
        model, settings = load_backbone(path)
    except ValueError as error:
        return str(error)
    return weights_digest(model), settings


def test_no_flipped_bit_of_an_export_changes_it_in_silence(tmp_path):
    path = tmp_path / "backbone.safetensors"
    model = build_backbone("tiny", embedding_size=16, image_size=32, widths=[8, 8, 8, 8])
    save_backbone(path, model, **SETTINGS, widths=[8, 8, 8, 8])
    whole, expected = path.read_bytes(), read(path)
    header = 8 + int.from_bytes(whole[:8], "little")
    chance = random.Random(5)
    # Every character of the settings, which a few bits make other ones; then the weights.
    start = whole.index(b"image_size")
    places = [*range(start, start + 16), *(chance.randrange(header) for _ in range(30))]
    places += [chance.randrange(header, len(whole)) for _ in range(30)]
    refused = 0
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        found = read(path)
        refused += isinstance(found, str)
        assert found == expected or (isinstance(found, str) and str(path) in found), place
    assert refused > 60


def test_an_export_of_an_earlier_version_is_used_and_said(tmp_path, caplog):
    path = tmp_path / "backbone.safetensors"
    model = build_backbone("tiny", embedding_size=16, image_size=32)
    save_file(model.state_dict(), path, {key: str(value) for key, value in SETTINGS.items()})
    assert read(path)[0] == weights_digest(model)
    assert "without checksums: it is used as it is" in caplog.text


def test_an_export_that_does_not_fit_on_the_disk_is_a_sentence(tmp_path):
    path = tmp_path / "backbone.safetensors"
    model = build_backbone("tiny", embedding_size=16, image_size=32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(RuntimeError, match=r"backbone\.safetensors could not be written"):
            save_backbone(path, model, **SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
