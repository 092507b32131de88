"""MobileFaceNet and the transformers against the published architectures, written down again."""

import pytest
import torch
from torch import nn

from kappaface_dist.backbones import build_backbone


class Shapes(dict):
    """Key -> shape of a state dict."""

    def norm(self, key, channels, *, batch=True):
        self[f"{key}.weight"] = self[f"{key}.bias"] = (channels,)
        if batch:
            self[f"{key}.running_mean"] = self[f"{key}.running_var"] = (channels,)
            self[f"{key}.num_batches_tracked"] = ()

    def linear(self, key, size_in, size_out, *, bias):
        self[f"{key}.weight"] = (size_out, size_in)
        if bias:
            self[f"{key}.bias"] = (size_out,)

    def conv(self, key, channels_in, channels, kernel, groups=1, *, prelu=True):
        self[f"{key}.layers.0.weight"] = (channels, channels_in // groups, kernel, kernel)
        self.norm(f"{key}.layers.1", channels)
        if prelu:
            self[f"{key}.layers.2.weight"] = (channels,)

    def depthwise(self, key, channels_in, channels, groups):
        self.conv(f"{key}.layers.0", channels_in, groups, 1)
        self.conv(f"{key}.layers.1", groups, groups, 3, groups)
        self.conv(f"{key}.layers.2", groups, channels, 1, prelu=False)


def mobilefacenet_shapes(scale, blocks):
    """InsightFace's mobilefacenet.py; groups are constants there, whatever the scale."""
    shapes = Shapes()
    wide, wider = 64 * scale, 128 * scale
    shapes.conv("layers.0", 3, wide, 3)
    if blocks[0] == 1:
        shapes.conv("layers.1", wide, wide, 3, groups=64)
    else:
        for block in range(blocks[0]):
            shapes.depthwise(f"layers.1.layers.{block}", wide, wide, 128)
    for layer, channels_in, channels, down, groups, num_blocks in (
        (2, wide, wide, 128, 128, blocks[1]),
        (4, wide, wider, 256, 256, blocks[2]),
        (6, wider, wider, 512, 256, blocks[3]),
    ):
        shapes.depthwise(f"layers.{layer}", channels_in, channels, down)
        for block in range(num_blocks):
            shapes.depthwise(f"layers.{layer + 1}.layers.{block}", channels, channels, groups)
    shapes.conv("conv_sep", wider, 512, 1)
    shapes.conv("features.layers.0", 512, 512, 7, groups=512, prelu=False)
    shapes.linear("features.layers.2", 512, 512, bias=False)
    shapes.norm("features.layers.3", 512)
    return shapes


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
    "mbf": mobilefacenet_shapes(2, (1, 4, 6, 2)),
    "mbf_large": mobilefacenet_shapes(4, (2, 8, 12, 4)),
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


def norm(state, key, x, eps=1e-5):
    values = [state[f"{key}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
    return nn.functional.batch_norm(x, *values, eps=eps)


def plain_mobilefacenet(state, image):
    """mbf in eval mode, by functions on the state dict alone."""
    f = nn.functional

    def conv(key, x, stride=1, padding=0, groups=1):
        x = f.conv2d(x, state[f"{key}.layers.0.weight"], None, stride, padding, 1, groups)
        x = norm(state, f"{key}.layers.1", x)
        slope = state.get(f"{key}.layers.2.weight")
        return x if slope is None else f.prelu(x, slope)

    def depthwise(key, x, groups, stride=1):
        x = conv(f"{key}.layers.1", conv(f"{key}.layers.0", x), stride, 1, groups)
        return conv(f"{key}.layers.2", x)

    x = conv("layers.0", image, 2, 1)
    x = conv("layers.1", x, 1, 1, 64)
    for layer, down, groups, depth in ((2, 128, 128, 4), (4, 256, 256, 6), (6, 512, 256, 2)):
        x = depthwise(f"layers.{layer}", x, down, stride=2)
        for block in range(depth):
            x = x + depthwise(f"layers.{layer + 1}.layers.{block}", x, groups)
    x = conv("features.layers.0", conv("conv_sep", x), groups=512)
    return norm(state, "features.layers.3", x.flatten(1) @ state["features.layers.2.weight"].T)


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
