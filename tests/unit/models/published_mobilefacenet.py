"""The published MobileFaceNets written down again: tensors by name and shape, the forward pass.

From deepinsight/insightface, recognition/arcface_torch/backbones/mobilefacenet.py; older versions
of that file have the same names.
"""

from torch import nn

# Name -> scale, blocks of the four stages.
MOBILEFACENETS = {"mbf": (2, (1, 4, 6, 2)), "mbf_large": (4, (2, 8, 12, 4))}


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


def norm(state, key, x, eps=1e-5):
    values = [state[f"{key}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
    return nn.functional.batch_norm(x, *values, eps=eps)


def plain_mobilefacenet(state, image, blocks=(1, 4, 6, 2)):
    """The network in eval mode, by functions on the state dict alone."""
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
    if blocks[0] == 1:
        x = conv("layers.1", x, 1, 1, 64)
    else:
        for block in range(blocks[0]):
            x = x + depthwise(f"layers.1.layers.{block}", x, 128)
    for stage, down, groups in ((1, 128, 128), (2, 256, 256), (3, 512, 256)):
        layer = 2 * stage
        x = depthwise(f"layers.{layer}", x, down, stride=2)
        for block in range(blocks[stage]):
            x = x + depthwise(f"layers.{layer + 1}.layers.{block}", x, groups)
    x = conv("features.layers.0", conv("conv_sep", x), groups=512)
    return norm(state, "features.layers.3", x.flatten(1) @ state["features.layers.2.weight"].T)
