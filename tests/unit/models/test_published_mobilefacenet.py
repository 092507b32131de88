"""InsightFace's MobileFaceNet checkpoints, in files with their names and shapes, taken over."""

import pytest
import torch

from kappaface_dist.backbones import build_backbone
from kappaface_dist.models.insightface import import_backbone
from kappaface_dist.models.published import load_published
from tests.unit.models.published_mobilefacenet import (
    MOBILEFACENETS,
    mobilefacenet_shapes,
    plain_mobilefacenet,
)


def published_file(name, path, change=None):
    """A file as arcface_torch writes it, of random weights that keep activations at about 1."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for key, shape in mobilefacenet_shapes(*MOBILEFACENETS[name]).items():
        noise = torch.randn(shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1000)
        elif noise.ndim > 1:
            state[key] = noise * (2 / noise[0].numel()) ** 0.5
        elif key.endswith("running_var"):
            state[key] = noise.exp()
        elif key.endswith(("bias", "running_mean")):
            state[key] = 0.3 * noise
        else:  # scales of the normalisations and slopes of the PReLUs
            state[key] = 0.5 + 0.2 * noise
    if change is not None:
        change(state)
    torch.save(state, path)
    return state


@pytest.mark.parametrize("name", MOBILEFACENETS)
def test_a_published_file_gives_the_published_embeddings(name, tmp_path):
    state = published_file(name, tmp_path / "backbone.pth")
    model, settings, report = import_backbone(tmp_path / "backbone.pth")
    assert (settings.name, settings.embedding_size, settings.image_size) == (name, 512, 112)
    assert report.complete
    assert report.lines() == [f"{len(state)} tensors matched"]
    image = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(4)) * 2 - 1
    double = {key: value.double() for key, value in state.items()}
    expected = plain_mobilefacenet(double, image.double(), MOBILEFACENETS[name][1])
    assert expected.std(dim=1).min() > 1e-3  # they differ, or any network would be right
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    with torch.no_grad():
        found = model(image).double()
    # float32 through 50 and 92 layers, against float64.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    start = build_backbone(name)  # backbone.init=FILE of a training
    load_published(tmp_path / "backbone.pth", start)
    with torch.no_grad():
        torch.testing.assert_close(start.eval()(image).double(), found, rtol=0, atol=0)


def test_unmatched_names_of_a_file_are_told(tmp_path):
    def change(state):
        state["layers.3.layers.4.layers.0.layers.0.weight"] = torch.zeros(128, 128, 1, 1)
        del state["conv_sep.layers.2.weight"]
        state["layers.1.layers.0.weight"] = torch.zeros(128, 1, 3, 3)

    published_file("mbf", tmp_path / "other.pth", change)
    _, settings, report = import_backbone(tmp_path / "other.pth")
    assert settings.name == "mbf"
    assert not report.complete
    assert report.lines()[1:] == [
        "1 not in the file: conv_sep.layers.2.weight",
        "1 not in the model: layers.3.layers.4.layers.0.layers.0.weight",
        "1 of another shape: layers.1.layers.0.weight (128, 1, 3, 3) instead of (128, 2, 3, 3)",
    ]
    with pytest.raises(ValueError, match="3 tensors differ, for example conv_sep"):
        load_published(tmp_path / "other.pth", build_backbone("mbf"))
