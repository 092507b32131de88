"""MobileFaceNet and the transformers against the published architectures, written down again."""

import pytest
import torch
from torch import nn

from kappaface_dist.backbones import build_backbone
from tests.unit.models.published_mobilefacenet import (
    MOBILEFACENETS,
    Shapes,
    mobilefacenet_shapes,
    norm,
    plain_mobilefacenet,
)


def vit_shapes(width, depth):
    """InsightFace's vit.py with the settings of its get_model."""
    shapes = Shapes({"pos_embed": (1, 144, width), "mask_token": (1, 1, width)})
    shapes["patch_embed.proj.weight"] = (width, 3, 9, 9)
    shapes["patch_embed.proj.bias"] = (width,)
    for block in range(depth):
        key = f"blocks.{block}"
        shapes.norm(f"{key}.norm1", width, batch=False)
        shapes.norm(f"{key}.norm2", width, batch=False)
        shapes.linear(f"{key}.attn.qkv", width, 3 * width, bias=False)
        shapes.linear(f"{key}.attn.proj", width, width, bias=True)
        shapes.linear(f"{key}.mlp.fc1", width, 4 * width, bias=True)
        shapes.linear(f"{key}.mlp.fc2", 4 * width, width, bias=True)
    shapes.norm("norm", width, batch=False)
    shapes.linear("feature.0", 144 * width, width, bias=False)
    shapes.norm("feature.1", width)
    shapes.linear("feature.2", width, 512, bias=False)
    shapes.norm("feature.3", 512)
    return shapes


PUBLISHED = {
    **{name: mobilefacenet_shapes(*sizes) for name, sizes in MOBILEFACENETS.items()},
    "vit_t": vit_shapes(256, 12),
    "vit_s": vit_shapes(512, 12),
    "vit_b": vit_shapes(512, 24),
    "vit_l": vit_shapes(768, 24),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_checkpoint_loads_strictly(name):
    with torch.device("meta"):
        model = build_backbone(name)
        published = {key: torch.empty(shape) for key, shape in PUBLISHED[name].items()}
    model.load_state_dict(published, strict=True, assign=True)


def plain_vit(state, image, depth):
    """A vit in eval mode, by functions on the state dict alone, with the softmax written out."""
    f = nn.functional

    def layer_norm(key, x):
        return f.layer_norm(x, x.shape[-1:], state[f"{key}.weight"], state[f"{key}.bias"])

    def linear(key, x):
        return f.linear(x, state[f"{key}.weight"], state.get(f"{key}.bias"))

    x = f.conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=9)
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"]
    for block in range(depth):
        key = f"blocks.{block}"
        parts = linear(f"{key}.attn.qkv", layer_norm(f"{key}.norm1", x)).chunk(3, dim=-1)
        query, key_, value = (p.unflatten(-1, (8, -1)).transpose(1, 2) for p in parts)
        score = query @ key_.transpose(-2, -1) / query.shape[-1] ** 0.5
        mixed = (score.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        x = x + linear(f"{key}.attn.proj", mixed)
        inner = linear(f"{key}.mlp.fc1", layer_norm(f"{key}.norm2", x)).clamp(0, 6)
        x = x + linear(f"{key}.mlp.fc2", inner)
    x = norm(state, "feature.1", linear("feature.0", layer_norm("norm", x).flatten(1)), 2e-5)
    return norm(state, "feature.3", linear("feature.2", x), 2e-5)


@pytest.mark.parametrize("name", ["mbf", "vit_t"])
def test_forward_is_the_published_one(name):
    torch.manual_seed(0)
    settings = {"widths": [64], "depths": [3]} if name == "vit_t" else {}
    size = 32 if name == "mbf" else 36
    model = build_backbone(name, embedding_size=64, image_size=size, **settings).eval()
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "bias")) or (value.ndim == 1 and ".norm" in key):
            value.copy_(0.5 * torch.randn_like(value))
        elif key.endswith("running_var"):
            value.copy_(0.5 + torch.rand_like(value))
    image = torch.randn(2, 3, size, size)
    state = {key: value.double() for key, value in model.state_dict().items()}
    if name == "mbf":
        expected = plain_mobilefacenet(state, image.double())
    else:
        expected = plain_vit(state, image.double(), 3)
    with torch.no_grad():
        found = model(image).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
