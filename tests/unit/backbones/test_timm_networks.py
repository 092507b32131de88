"""timm's networks behind our embedding layer, against timm's own."""

import pytest
import torch
from torch import nn

from kappaface_dist.backbones import build_backbone, timm_networks
from kappaface_dist.backbones.counting import count_cost
from kappaface_dist.models.export import (
    BackboneSettings,
    load_backbone,
    save_backbone,
    weights_digest,
)
from kappaface_dist.models.insightface import import_backbone
from kappaface_dist.models.program_export import export_program
from kappaface_dist.models.saved_model import open_model
from kappaface_dist.training.data_parallel import with_sync_batchnorm

try:
    timm = timm_networks.import_timm()
except RuntimeError as missing:
    pytest.skip(str(missing), allow_module_level=True)

# BatchNorm with an activation inside it; LayerNorm, and places made for the image's size.
CONVOLUTIONAL, TRANSFORMER = "timm/mobilenetv3_small_050", "timm/vit_tiny_patch16_224"
NAMES = (CONVOLUTIONAL, TRANSFORMER)
IMAGE = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def small(name, image_size=48, **settings):
    torch.manual_seed(0)
    return build_backbone(name, embedding_size=16, image_size=image_size, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_timms_network_with_our_last_layer(name):
    model = small(name).eval()
    bare = name.removeprefix("timm/")
    card = timm.get_pretrained_cfg(bare)
    size = {"img_size": 48} if card.fixed_input_size else {}
    theirs = timm.create_model(bare, pretrained=False, num_classes=0, **size).eval()
    theirs.load_state_dict(model.trunk.state_dict())
    pixels = (IMAGE * 127.5 + 127.5) / 255
    mean, std = (torch.tensor(number).view(3, 1, 1) for number in (card.mean, card.std))
    with torch.no_grad():
        features = theirs((pixels - mean) / std)
        expected = model.features(model.fc(features))
        torch.testing.assert_close(model(IMAGE), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_counted_as_it_is(name):
    model = small(name, dropout=0.1)
    cost = count_cost(name, embedding_size=16, image_size=48)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert cost.buffers == sum(b.numel() for b in model.buffers())
    # By hand: products of each convolution and layer, and in attention those of its two products.
    counted = 0

    def count(module, args, out):
        nonlocal counted
        if isinstance(module, nn.Conv2d | nn.Linear):
            counted += 2 * out[0].numel() * module.weight[0].numel()
        elif type(module).__name__ == "Attention":
            _, num_places, width = args[0].shape
            counted += 4 * num_places**2 * width

    for module in model.eval().modules():
        module.register_forward_hook(count)
    model(IMAGE[:1])
    assert cost.forward_flops == counted
    model.train()(IMAGE).sum().backward()
    # DDP waits for the gradient of whatever is trained.
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_memory_and_nothing_else(name):
    results = []
    for checkpointing in (False, True):
        model = small(name, checkpointing=checkpointing, drop_path=0.5, dropout=0.2)
        kept = 0

        def count(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            embedding = model(IMAGE)
        embedding.square().sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        results.append((kept, gradients, dict(model.named_buffers())))
    assert results[1][0] < 0.7 * results[0][0]
    for found, expected in zip(results[1][1:], results[0][1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_paths_are_dropped_in_training_only():
    model = small(TRANSFORMER, drop_path=0.5)
    with torch.no_grad():
        dropped = [model(IMAGE) for _ in range(2)]
        whole = [model.eval()(IMAGE) for _ in range(2)]
    assert not torch.allclose(*dropped, atol=1e-3)
    assert torch.equal(*whole)


def test_an_export_comes_back(tmp_path):
    model = small(CONVOLUTIONAL)
    model(IMAGE)  # moves the running statistics
    settings = BackboneSettings(CONVOLUTIONAL, 16, 48)
    save_backbone(tmp_path / "backbone.safetensors", model, **vars(settings))
    loaded, found = load_backbone(tmp_path / "backbone.safetensors")
    assert (found, weights_digest(loaded)) == (settings, weights_digest(model))
    # The program compares itself with the network in batches of 1, 2, 7 and 64.
    assert export_program(tmp_path / "backbone.pt2", model.eval(), settings).difference < 1e-4
    exported = open_model(tmp_path / "backbone.pt2")
    with torch.no_grad():
        expected = model(IMAGE)
        torch.testing.assert_close(exported.network(IMAGE), expected, rtol=1e-4, atol=1e-4)


def test_timms_weights_are_taken_over(tmp_path):
    bare = CONVOLUTIONAL.removeprefix("timm/")
    published = timm.create_model(bare, pretrained=False)
    torch.save(published.state_dict(), tmp_path / "theirs.pth")
    model, settings, report = import_backbone(tmp_path / "theirs.pth", CONVOLUTIONAL, 48)
    assert settings == BackboneSettings(CONVOLUTIONAL, 512, 48)
    trunk, theirs = model.trunk.state_dict(), published.state_dict()
    assert len(report.matched) == len(trunk)
    assert all(torch.equal(trunk[key], theirs[key]) for key in trunk)
    # Their classifier stays behind; our last layer is new.
    assert report.unexpected == ["trunk.classifier.bias", "trunk.classifier.weight"]
    assert {key.split(".")[0] for key in report.missing} == {
        "fc",
        "features",
        "scale_311",
        "shift_311",
    }
    ours = small(CONVOLUTIONAL)
    torch.save({f"module.{k}": v for k, v in ours.state_dict().items()}, tmp_path / "ours.pth")
    model, settings, report = import_backbone(tmp_path / "ours.pth", CONVOLUTIONAL, 48)
    assert report.complete
    assert settings.embedding_size == 16
    assert weights_digest(model) == weights_digest(ours)


def test_sync_batchnorm_keeps_the_activations():
    model = small(CONVOLUTIONAL)
    names = set(model.state_dict())
    model = with_sync_batchnorm(model, torch.device("cuda"))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert not norms
    assert set(model.state_dict()) == names
    assert isinstance(model.trunk.bn1.act, type(small(CONVOLUTIONAL).trunk.bn1.act))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("timm/resnet19", {}, r"has no such network: .* such as .*resnet1[08]"),
        ("timm/resnet18.a1_in1k", {}, "names weights, which are not downloaded: take timm/resnet"),
        (CONVOLUTIONAL, {"depths": [1]}, r"backbone\.depths is \[1\], and .* depths of its own"),
        (CONVOLUTIONAL, {"mask_ratio": 0.1}, "has no patches"),
        (CONVOLUTIONAL, {"checkpointing": [1]}, r"\[1\], and timm's networks have no stages"),
        (TRANSFORMER, {"image_size": 8}, "cannot be built for 8 pixels"),
        ("timm/vgg11", {"drop_path": 0.1}, r"cannot be built for .* backbone\.drop_path=0\.1"),
    ],
)
def test_mistakes_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        small(name, **settings)
