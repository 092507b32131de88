"""Face-embedding networks, built by name."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from kappaface_dist.backbones import iresnet, mobilefacenet, timm_networks, vit
from kappaface_dist.backbones.layers import NUM_STAGES

TINY = ("tiny", "tiny_gn")
BACKBONES = (*iresnet.DEPTHS, *mobilefacenet.DEPTHS, *vit.SHAPES, *TINY)


def build_backbone(
    name: str,
    *,
    embedding_size: int = 512,
    image_size: int = 112,
    checkpointing: bool | Sequence[int] = False,
    depths: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    drop_path: float | None = None,
    dropout: float = 0.0,
    mask_ratio: float | None = None,
) -> nn.Module:
    """A network that maps image_B3HW (float, about -1 to 1) to embedding_BD (float32, any length).

    Args:
        name: r18, r34, r50, r100, r200 (InsightFace's iResNets), mbf, mbf_large (MobileFaceNets),
            vit_t, vit_s, vit_b, vit_l, or for CPUs and tests tiny and tiny_gn, whose steps do not
            depend on the number of ranks (GroupNorm); or timm/NAME, any image network of timm.
        embedding_size: D, numbers per embedding.
        image_size: H = W in pixels, at least 16 (transformers: 9).
        checkpointing: recompute activations in the backward pass instead of keeping them: for all
            four stages (True) or for the numbered ones, 1 being the first and largest; a
            transformer's stages are quarters of its blocks; timm's networks know all or none.
        depths: blocks of the four stages (a transformer has one number); None: the name's.
        widths: channels of the four stages (a transformer has one number); None: the name's.
        drop_path: rate at which the last block's residual branch is left out per image, rising
            linearly from the first; None: what the field gives the name (0 without a transformer).
        dropout: rate on the input of the last layer; in transformers inside every block instead.
        mask_ratio: share of the patches that a transformer does not see in training; None: the
            field's.

    Raises:
        ValueError: an unknown name, or a setting out of range.
        RuntimeError: a network of timm, which is not installed.
    """
    from_timm = name.startswith(timm_networks.PREFIX)
    if name not in BACKBONES and not from_timm:
        known = ", ".join(BACKBONES)
        raise ValueError(f"backbone.name is {name!r}, expected one of {known}, or timm/NAME")
    if embedding_size < 1:
        raise ValueError(f"backbone.embedding_size is {embedding_size}, expected 1 or more")
    smallest = vit.PATCH_SIZE if name in vit.SHAPES else iresnet.REDUCTION
    if image_size < smallest and not from_timm:
        raise ValueError(
            f"data.image_size is {image_size}, and {name} needs {smallest} pixels or more"
        )
    _check_shape("depths", name, depths)
    _check_shape("widths", name, widths)
    for key, rate in (("drop_path", drop_path), ("dropout", dropout), ("mask_ratio", mask_ratio)):
        if rate is not None and not 0.0 <= rate < 1.0:
            raise ValueError(f"backbone.{key} is {rate}, expected a share from 0 to below 1")
    if mask_ratio and name not in vit.SHAPES:
        raise ValueError(
            f"backbone.mask_ratio is {mask_ratio}, but {name} has no patches: leave it unset"
        )
    settings: dict[str, Any] = {
        "embedding_size": embedding_size,
        "image_size": image_size,
        "dropout": dropout,
    }
    if from_timm:
        return timm_networks.build(
            name, drop_path=drop_path, checkpointing=checkpointing, **settings
        )
    settings["checkpointed_stages"] = _stages(checkpointing)
    if name in vit.SHAPES:
        return vit.build(name, depths, widths, drop_path, mask_ratio, **settings)
    settings["drop_path"] = drop_path or 0.0
    if name in mobilefacenet.DEPTHS:
        return mobilefacenet.build(name, depths, widths, **settings)
    build = iresnet.tiny if name in TINY else iresnet.iresnet
    return build(name, depths, widths, **settings)


def _stages(checkpointing: bool | Sequence[int]) -> tuple[int, ...]:
    every = tuple(range(1, NUM_STAGES + 1))
    if isinstance(checkpointing, bool):
        return every if checkpointing else ()
    if not set(checkpointing) <= set(every):
        raise ValueError(
            f"backbone.checkpointing is {list(checkpointing)}, expected true, false or stages from"
            f" 1 to {NUM_STAGES}"
        )
    return tuple(checkpointing)


def _check_shape(key: str, name: str, numbers: Sequence[int] | None) -> None:
    if numbers is None:
        return
    if name.startswith(timm_networks.PREFIX):
        raise ValueError(
            f"backbone.{key} is {list(numbers)}, and {name} has {key} of its own: leave it unset"
        )
    expected = 1 if name in vit.SHAPES else NUM_STAGES
    if len(numbers) != expected or min(numbers) < 1:
        raise ValueError(
            f"backbone.{key} is {list(numbers)}, and {name} needs {expected} of 1 or more"
        )
    # Groups of channels (GroupNorm, attention heads) take eight at a time.
    if key == "widths" and any(number % 8 for number in numbers):
        raise ValueError(f"backbone.widths is {list(numbers)}, expected multiples of 8")
