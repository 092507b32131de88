"""What all networks have in common: counted costs, dropping, shapes as settings, recomputation."""

import pytest
import torch

from kappaface_dist.backbones import build_backbone
from kappaface_dist.backbones.counting import count_cost
from kappaface_dist.backbones.layers import drop_path, rising_rates

IMAGE = torch.randn(4, 3, 36, 36, generator=torch.Generator().manual_seed(1))
# One small network of each family.
SMALL = {
    "tiny": {},
    "mbf": {"depths": [1, 2, 1, 1], "widths": [16, 16, 32, 32]},
    "mbf_large": {"depths": [2, 1, 1, 1], "widths": [16, 16, 32, 32]},
    "vit_t": {"depths": [4], "widths": [32], "drop_path": 0.0, "mask_ratio": 0.0},
}


def small(name, **settings):
    torch.manual_seed(0)
    return build_backbone(name, embedding_size=16, image_size=36, **{**SMALL[name], **settings})


@pytest.mark.parametrize(
    ("name", "millions", "gmac"),
    [
        # arcface_torch's model zoo: parameters where it states them, GMAC (there: "GFLOPs").
        ("r50", 43.6, 6.3),
        ("r100", 65.2, 12.1),
        ("mbf", None, 0.45),
        ("vit_t", None, 1.5),
        ("vit_s", None, 5.7),
        ("vit_b", None, 11.4),
        ("vit_l", None, 25.3),
    ],
)
def test_costs_are_the_published_ones(name, millions, gmac):
    cost = count_cost(name)
    assert cost.forward_flops / 2e9 == pytest.approx(gmac, abs=0.05)
    if millions is not None:
        assert cost.parameters / 1e6 == pytest.approx(millions, abs=0.05)
        assert cost.trained == cost.parameters - 512  # the last scale is not trained


def test_patches_left_out_cost_nothing():
    whole, masked = (count_cost("vit_t", mask_ratio=ratio).training_flops for ratio in (0.0, 0.5))
    assert masked == pytest.approx(whole / 2, rel=0.06)


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_changes_memory_and_nothing_else(name):
    """With dropping: the recomputation must draw the same numbers."""
    results = []
    for stages in (False, [1], True):
        model = small(name, checkpointing=stages, drop_path=0.3, dropout=0.2)
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
    assert results[0][0] > results[1][0] > results[2][0]
    for _, gradients, buffers in results[1:]:
        torch.testing.assert_close(gradients, results[0][1], rtol=0, atol=0)
        torch.testing.assert_close(buffers, results[0][2], rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("setting", ["drop_path", "dropout", "mask_ratio"])
def test_what_is_dropped_depends_on_the_seed_and_on_training(name, setting):
    if setting == "mask_ratio" and name != "vit_t":
        return
    model = small(name, **{setting: 0.5})

    def embed(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return model(IMAGE)

    assert torch.equal(embed(1), embed(1))
    assert not torch.allclose(embed(1), embed(2), atol=1e-4)
    model.eval()
    assert torch.equal(embed(1), embed(2))


def test_drop_path_keeps_the_mean_and_whole_images():
    torch.manual_seed(0)
    x = torch.ones(20_000, 2, 3)
    dropped = drop_path(x, 0.3, training=True)
    per_image = dropped.flatten(1)
    assert torch.equal(per_image.amin(dim=1), per_image.amax(dim=1))
    # A share of 0.3 is zero: 4 standard errors.
    assert (per_image[:, 0] == 0).float().mean() == pytest.approx(0.3, abs=4 * 0.0033)
    assert dropped.mean() == pytest.approx(1.0, abs=4 * 0.0047)
    assert drop_path(x, 0.3, training=False) is x
    assert rising_rates(0.2, 3) == [0.0, 0.1, 0.2]


def test_patches_left_out_come_back_as_the_token():
    """The gradient of the token counts the places that it stands in."""
    model = small("vit_t", mask_ratio=0.5)
    seen = []
    model.feature[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(IMAGE)
    (flat,) = seen
    is_token = (flat.unflatten(1, (16, 32)) == model.mask_token).all(dim=2)
    assert is_token.sum(dim=1).tolist() == [8] * 4
    assert len({tuple(row.tolist()) for row in is_token}) > 1
    assert not small("vit_t").mask_token.requires_grad


@pytest.mark.parametrize("name", SMALL)
def test_depths_and_widths_are_settings(name):
    few = sum(p.numel() for p in small(name).parameters())
    shape = SMALL[name] or {"depths": [1, 1, 1, 1], "widths": [16, 32, 64, 128]}
    for key, numbers in (
        ("depths", [2 * d for d in shape["depths"]]),
        ("widths", [2 * w for w in shape["widths"]]),
    ):
        model = small(name, **{key: numbers})
        assert sum(p.numel() for p in model.parameters()) > few
        assert model(IMAGE).shape == (4, 16)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("r50", {"depths": [1, 2]}, r"backbone\.depths is \[1, 2\], and r50 needs 4"),
        ("vit_t", {"widths": [8, 8]}, r"backbone\.widths is \[8, 8\], and vit_t needs 1"),
        ("tiny", {"widths": [8, 8, 8, 9]}, "expected multiples of 8"),
        ("tiny", {"drop_path": 1.0}, r"backbone\.drop_path is 1\.0, expected a share"),
        ("tiny", {"dropout": -0.1}, r"backbone\.dropout is -0\.1"),
        ("tiny", {"mask_ratio": 0.1}, "tiny has no patches"),
    ],
)
def test_mistakes_are_named(name, setting, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name, **setting)
