"""Face-embedding networks, built by name."""

from collections.abc import Sequence

from torch import nn

from kappaface_dist.backbones import iresnet

BACKBONES = (*iresnet.DEPTHS, "tiny", "tiny_gn")


def build_backbone(
    name: str,
    *,
    embedding_size: int = 512,
    image_size: int = 112,
    checkpointing: bool | Sequence[int] = False,
) -> nn.Module:
    """A network that maps image_B3HW (float, about -1 to 1) to embedding_BD (float32, any length).

    Args:
        name: r18, r34, r50, r100, r200 (InsightFace's iResNets), or for CPUs and tests tiny and
            tiny_gn, whose steps do not depend on the number of ranks (GroupNorm).
        embedding_size: D, numbers per embedding.
        image_size: H = W in pixels, at least 16.
        checkpointing: recompute activations in the backward pass instead of keeping them: for all
            four stages (True) or for the numbered ones, 1 being the first and largest.

    Raises:
        ValueError: an unknown name, or a size out of range.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone.name is {name!r}, expected one of {', '.join(BACKBONES)}")
    if embedding_size < 1:
        raise ValueError(f"backbone.embedding_size is {embedding_size}, expected 1 or more")
    if image_size < iresnet.REDUCTION:
        raise ValueError(
            f"data.image_size is {image_size}, and {name} needs {iresnet.REDUCTION} pixels or more"
        )
    if isinstance(checkpointing, bool):
        stages: tuple[int, ...] = (1, 2, 3, 4) if checkpointing else ()
    else:
        stages = tuple(checkpointing)
    if not set(stages) <= {1, 2, 3, 4}:
        raise ValueError(
            f"backbone.checkpointing is {list(stages)}, expected true, false or stages from 1 to 4"
        )
    build = iresnet.iresnet if name in iresnet.DEPTHS else iresnet.tiny
    return build(
        name, embedding_size=embedding_size, image_size=image_size, checkpointed_stages=stages
    )
