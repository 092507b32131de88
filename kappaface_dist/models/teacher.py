"""A teacher: a trained network whose embeddings another one learns from.

One of ours in any form (an export, a checkpoint, a run), or InsightFace's (.pth, .onnx).
Shapes: B images, D embedding size, H W image size.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kappaface_dist.models.export import BackboneSettings, weights_digest
from kappaface_dist.models.exported import ExportedNetwork, file_digest, read_onnx
from kappaface_dist.models.insightface import import_backbone
from kappaface_dist.models.saved_model import open_model

# Among so many first operators InsightFace's older files subtract the pixels' mean themselves.
FIRST_OPERATORS = 8


@dataclass(frozen=True)
class Teacher:
    """Attributes:
    network: image_B3HW (float32, -1 to 1) -> embedding_BD, on the CPU and in eval mode.
    digest: SHA-256 of its weights or of its file.
    settings: how it is built; None for an ONNX file of another program.
    """

    network: nn.Module
    embedding_size: int
    digest: str
    settings: BackboneSettings | None


def load_teacher(path: str, image_size: int) -> Teacher:
    """Read a teacher for images of image_size pixels.

    Raises:
        ValueError: it is damaged, is no such model, or takes images of another size.
        RuntimeError: an .onnx file, and what reads it is not installed.
        OSError: it cannot be read.
    """
    place = Path(path)
    if place.suffix in (".pth", ".pt"):
        teacher = _from_published(place, image_size)
    elif place.suffix == ".onnx" and "weights_sha256" not in read_onnx(place)[1]:
        teacher = _from_other_program(place, image_size)
    else:
        model = open_model(place)
        settings = model.settings
        if settings.image_size != image_size:
            raise ValueError(
                f"distill.model {path} takes images of {settings.image_size} pixels, and"
                f" data.image_size is {image_size}: make them equal, or take another teacher"
            )
        teacher = Teacher(model.network, settings.embedding_size, model.embeds_as, settings)
    noise = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedding_BD = teacher.network(noise * 2 - 1)
    if not embedding_BD.isfinite().all():
        raise ValueError(f"distill.model {path} gives embeddings that are not finite: export anew")
    return teacher


def _from_published(path: Path, image_size: int) -> Teacher:
    network, settings, report = import_backbone(path, image_size=image_size)
    if not report.complete:
        raise ValueError(
            f"distill.model {path}, read as {settings.name} for images of {image_size} pixels"
            f" (data.image_size), does not match: {'; '.join(report.lines()[1:])[:300]}: take a"
            " teacher of that size, or another data.image_size"
        )
    return Teacher(network, settings.embedding_size, weights_digest(network), settings)


def _from_other_program(path: Path, image_size: int) -> Teacher:
    network: nn.Module = read_onnx(path)[0]
    if _subtracts_the_mean(path):
        plain = network
        network = ExportedNetwork(lambda x: plain(torch.from_numpy(x * 127.5 + 127.5)).numpy())
    try:
        embedding_BD = network(torch.zeros(2, 3, image_size, image_size))
    except Exception as error:  # onnxruntime's own errors derive from nothing narrower
        raise ValueError(
            f"distill.model {path} does not take two images of {image_size} pixels"
            f" (data.image_size): {' '.join(str(error).split())[:300]}"
        ) from error
    if embedding_BD.ndim != 2:
        raise ValueError(
            f"distill.model {path} gives {list(embedding_BD.shape)} for two images, expected an"
            " embedding of each: is it a network for recognition?"
        )
    return Teacher(network, embedding_BD.shape[1], file_digest(path), None)


def _subtracts_the_mean(path: Path) -> bool:
    """Whether a graph takes pixels from 0 to 255, as InsightFace's own reader decides it."""
    try:
        import onnx
    except ImportError as error:
        raise RuntimeError(
            f"{path} needs onnx to be looked into: pip install 'kappaface_dist[export]'"
        ) from error
    first = {node.op_type for node in onnx.load(path).graph.node[:FIRST_OPERATORS]}
    return {"Sub", "Mul"} <= first
