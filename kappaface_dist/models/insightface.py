"""Published InsightFace backbones (.pth) and those of arcface_torch's own checkpoints, taken over.

Their r18..r200, mbf and mbf_large have the names and shapes of ours. So are timm's weights, whose
classifier stays behind.
"""

import os
from dataclasses import dataclass

import torch
from torch import nn

from kappaface_dist.backbones import BACKBONES, build_backbone
from kappaface_dist.backbones.timm_networks import PREFIX
from kappaface_dist.models.export import BackboneSettings
from kappaface_dist.models.published import COUNTER, read_published

DEFAULT_EMBEDDING_SIZE = 512


@dataclass(frozen=True)
class ImportReport:
    """What became of the file's tensors; the last three say why a name was not matched."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    wrong_shape: list[str]

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model was in the file, and no other."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def lines(self) -> list[str]:
        """The report, a line per kind of trouble with all of its names."""
        kinds = {
            "not in the file": self.missing,
            "not in the model": self.unexpected,
            "of another shape": self.wrong_shape,
        }
        lines = [f"{len(self.matched)} tensors matched"]
        return lines + [
            f"{len(names)} {kind}: {', '.join(names)}" for kind, names in kinds.items() if names
        ]


def import_backbone(
    path: str | os.PathLike[str], name: str | None = None, image_size: int = 112
) -> tuple[nn.Module, BackboneSettings, ImportReport]:
    """Build the network of a .pth file and fill it; what does not match keeps its initial values.

    Args:
        name: which backbone; found by the names and shapes of its tensors if not given, unless it
            is one of timm's.
        image_size: that the network was trained with, in pixels.

    Raises:
        ValueError: the file is not readable as tensors only, or is of no backbone of ours.
        OSError: the file cannot be read.
    """
    tensors = read_published(path)
    vectors = [tensor for tensor in tensors.values() if tensor.ndim == 1]
    if not vectors:
        raise ValueError(f"{path} has {len(tensors)} tensors and no normalisation among them")
    # Every backbone ends with the normalisation of its embedding.
    embedding_size = len(vectors[-1])
    if name is not None and name.startswith(PREFIX) and "features.weight" not in tensors:
        embedding_size = DEFAULT_EMBEDDING_SIZE  # timm's own, which has none
        tensors = {f"trunk.{key}": tensor for key, tensor in tensors.items()}
    if name is None:
        name = _guess(path, tensors, embedding_size, image_size)
    settings = BackboneSettings(name, embedding_size, image_size)
    model = build_backbone(name, embedding_size=embedding_size, image_size=image_size)
    state = model.state_dict()
    wrong = {
        key: f"{key} {tuple(tensors[key].shape)} instead of {tuple(state[key].shape)}"
        for key in state.keys() & tensors.keys()
        if state[key].shape != tensors[key].shape
    }
    matched = sorted(state.keys() & tensors.keys() - wrong.keys())
    report = ImportReport(
        matched=matched,
        missing=sorted(k for k in state.keys() - tensors.keys() if not k.endswith(COUNTER)),
        unexpected=sorted(tensors.keys() - state.keys()),
        wrong_shape=sorted(wrong.values()),
    )
    with torch.no_grad():
        for key in matched:
            state[key].copy_(tensors[key])
    return model.eval(), settings, report


def _guess(
    path: str | os.PathLike[str],
    tensors: dict[str, torch.Tensor],
    embedding_size: int,
    image_size: int,
) -> str:
    """The backbone whose tensors are most like those of the file, by names and shapes."""
    found = {k: tuple(v.shape) for k, v in tensors.items() if not k.endswith(COUNTER)}
    different = {}
    for name in BACKBONES:
        with torch.device("meta"):
            state = build_backbone(
                name, embedding_size=embedding_size, image_size=image_size
            ).state_dict()
        expected = {k: tuple(v.shape) for k, v in state.items() if not k.endswith(COUNTER)}
        different[name] = len({key for key, _ in found.items() ^ expected.items()})
    best = min(different, key=lambda name: different[name])
    if different[best] > len(found) / 2:
        raise ValueError(
            f"{path} is none of {', '.join(BACKBONES)}: of its {len(found)} tensors, such as"
            f" {', '.join(list(found)[:3])}, and those of the nearest, {best}, {different[best]}"
            " differ"
        )
    return best
