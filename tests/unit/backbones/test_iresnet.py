"""The iResNets against the published architecture, written down here a second time."""

import math

import pytest
import torch
from torch import nn

from kappaface_dist.backbones import build_backbone

PUBLISHED_BLOCKS = {
    "r18": [2, 2, 2, 2],
    "r34": [3, 4, 6, 3],
    "r50": [3, 4, 14, 3],
    "r100": [3, 13, 30, 3],
    "r200": [6, 26, 60, 6],
}


def published_shapes(name):
    """Key -> shape of InsightFace's iresnet.py (recognition/arcface_torch/backbones)."""

    def norm(key, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{key}.{part}"] = (channels,)
        shapes[f"{key}.num_batches_tracked"] = ()

    shapes = {"conv1.weight": (64, 3, 3, 3), "prelu.weight": (64,)}
    norm("bn1", 64)
    inplanes = 64
    for layer, (planes, blocks) in enumerate(
        zip([64, 128, 256, 512], PUBLISHED_BLOCKS[name], strict=True), 1
    ):
        for block in range(blocks):
            key = f"layer{layer}.{block}"
            norm(f"{key}.bn1", inplanes)
            shapes[f"{key}.conv1.weight"] = (planes, inplanes, 3, 3)
            norm(f"{key}.bn2", planes)
            shapes[f"{key}.prelu.weight"] = (planes,)
            shapes[f"{key}.conv2.weight"] = (planes, planes, 3, 3)
            norm(f"{key}.bn3", planes)
            if block == 0:
                shapes[f"{key}.downsample.0.weight"] = (planes, inplanes, 1, 1)
                norm(f"{key}.downsample.1", planes)
            inplanes = planes
    norm("bn2", 512)
    shapes["fc.weight"] = (512, 512 * 7 * 7)
    shapes["fc.bias"] = (512,)
    norm("features", 512)
    return shapes


@pytest.mark.parametrize("name", PUBLISHED_BLOCKS)
def test_a_published_checkpoint_loads_strictly(name):
    shapes = published_shapes(name)
    with torch.device("meta"):
        model = build_backbone(name)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == shapes
    published = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    model.load_state_dict(published, strict=True, assign=True)


@pytest.mark.parametrize(
    ("name", "millions"), [("r18", 24.0), ("r34", 34.1), ("r50", 43.6), ("r100", 65.2)]
)
def test_parameter_counts_are_the_published_ones(name, millions):
    with torch.device("meta"):
        model = build_backbone(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def plain_forward(state, image, blocks):
    """The published forward pass in eval mode, by functions on the state dict alone."""
    f = nn.functional

    def norm(key, x):
        return f.batch_norm(
            x,
            state[f"{key}.running_mean"],
            state[f"{key}.running_var"],
            state[f"{key}.weight"],
            state[f"{key}.bias"],
            eps=1e-5,
        )

    x = f.conv2d(image, state["conv1.weight"], padding=1)
    x = f.prelu(norm("bn1", x), state["prelu.weight"])
    for layer, depth in enumerate(blocks, 1):
        for block in range(depth):
            key = f"layer{layer}.{block}"
            stride = 2 if block == 0 else 1
            out = f.conv2d(norm(f"{key}.bn1", x), state[f"{key}.conv1.weight"], padding=1)
            out = f.prelu(norm(f"{key}.bn2", out), state[f"{key}.prelu.weight"])
            out = f.conv2d(out, state[f"{key}.conv2.weight"], stride=stride, padding=1)
            out = norm(f"{key}.bn3", out)
            if block == 0:
                x = f.conv2d(x, state[f"{key}.downsample.0.weight"], stride=2)
                x = norm(f"{key}.downsample.1", x)
            x = x + out
    x = norm("bn2", x).flatten(1) @ state["fc.weight"].T + state["fc.bias"]
    return norm("features", x)


def test_forward_is_the_published_one():
    torch.manual_seed(0)
    model = build_backbone("r18", embedding_size=64, image_size=32).double().eval()
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "bias", "prelu.weight")):
            value.copy_(0.1 * torch.randn_like(value))
        elif key.endswith("running_var"):
            value.copy_(0.5 + torch.rand_like(value))
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    # The network ends in float32 on purpose, which its own last layer here must not.
    model.fc.float(), model.features.float()
    expected = plain_forward(
        {key: value.double() for key, value in model.state_dict().items()}, image, [2, 2, 2, 2]
    )
    torch.testing.assert_close(
        model(image).double(), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item()
    )


def test_init_is_the_fields():
    torch.manual_seed(0)
    model = build_backbone("r18")
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4:
            # A normal distribution of standard deviation 0.1; 4 standard errors around it.
            error = 4 * 0.1 / math.sqrt(2 * parameter.numel())
            assert abs(parameter.std().item() - 0.1) < error, name
            assert abs(parameter.mean().item()) < 4 * 0.1 / math.sqrt(parameter.numel()), name
        elif name.endswith("prelu.weight"):
            assert torch.all(parameter == 0.25), name
    bound = 1 / math.sqrt(512 * 7 * 7)
    assert 0.99 * bound < model.fc.weight.abs().max().item() <= bound
    assert torch.all(model.features.weight == 1)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["features.weight"]


@pytest.mark.parametrize("name", ["r18", "tiny", "tiny_gn"])
@pytest.mark.parametrize("image_size", [16, 50, 112])
def test_image_size_is_a_setting(name, image_size):
    model = build_backbone(name, embedding_size=24, image_size=image_size)
    embedding = model(torch.randn(2, 3, image_size, image_size))
    assert embedding.shape == (2, 24)
    assert embedding.dtype == torch.float32


@pytest.mark.parametrize("name", ["r18", "tiny", "tiny_gn"])
def test_embedding_is_float32_under_autocast(name):
    model = build_backbone(name, embedding_size=8, image_size=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = model(torch.randn(2, 3, 16, 16))
    assert embedding.dtype == torch.float32
    # bfloat16 keeps 8 bits: numbers that all survive a rounding to it would have come from it.
    assert not torch.equal(embedding, embedding.bfloat16().float())


def saved_for_backward(model, image):
    """(gradients, buffers, bytes that the graph keeps) of one training step."""
    total = 0

    def count(tensor):
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        embedding = model(image)
    embedding.square().sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return gradients, {n: b.clone() for n, b in model.named_buffers()}, total


@pytest.mark.parametrize("name", ["r18", "tiny", "tiny_gn"])
def test_checkpointing_changes_memory_and_nothing_else(name):
    image = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    results = []
    for checkpointing in (False, [1], True):
        torch.manual_seed(0)
        model = build_backbone(name, image_size=32, checkpointing=checkpointing)
        results.append(saved_for_backward(model, image))
    for gradients, buffers, _ in results[1:]:
        for found, expected in ((gradients, results[0][0]), (buffers, results[0][1])):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected)
    kept = [total for *_, total in results]
    assert kept[0] > kept[1] > kept[2]


@pytest.mark.parametrize("name", ["tiny", "tiny_gn"])
def test_only_tiny_gn_is_independent_of_the_rest_of_the_batch(name):
    model = build_backbone(name, embedding_size=32, image_size=32)
    image = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = model(image)
    parts = torch.cat([model(image[:2]), model(image[2:])])
    assert torch.allclose(whole, parts, atol=1e-5) == (name == "tiny_gn")
    # The last normalisation has no trained scale, whichever it is.
    assert not model.features.weight.requires_grad


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"backbone\.name is 'r51', expected one of r18, r34"):
        build_backbone("r51")
    with pytest.raises(ValueError, match=r"data\.image_size is 15, and r18 needs 16"):
        build_backbone("r18", image_size=15)
    with pytest.raises(ValueError, match=r"backbone\.checkpointing is \[0, 5\]"):
        build_backbone("r18", checkpointing=[0, 5])
    with pytest.raises(ValueError, match=r"backbone\.embedding_size is 0"):
        build_backbone("r18", embedding_size=0)
