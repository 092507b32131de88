"""Opens what training leaves behind: an exported backbone, a checkpoint, or a whole run folder."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from kappaface_dist.checkpoint import tensors as checkpoint
from kappaface_dist.checkpoint.folder import NUMBERS, complete_checkpoints, read_numbers
from kappaface_dist.config.file import load_config, parse_config, to_dict
from kappaface_dist.config.keys import Config
from kappaface_dist.models.export import (
    BackboneSettings,
    load_backbone,
    read_metadata,
    weights_digest,
)
from kappaface_dist.models.exported import file_digest, read_onnx, read_program
from kappaface_dist.models.metadata import LEARNT, learnt_facts
from kappaface_dist.models.summary_file import read_summary

EXPORTS = ("backbone.safetensors", "backbone.onnx", "backbone.pt2")


@dataclass(frozen=True)
class SavedModel:
    """A backbone with its weights, on the CPU and in eval mode, and where it came from.

    Attributes:
        path: the file or checkpoint folder that was read.
        digest: SHA-256 of the weights, in hexadecimal; the same in a checkpoint and its export.
        config: of the run, where the run's config.yaml is beside the weights.
        metadata: what an exported file says of itself; empty for a checkpoint.
        file_digest: SHA-256 of an .onnx or .pt2 file, which computes in its own way: in half
            precision or in integers the same weights make other embeddings. None for the others.
    """

    network: nn.Module
    settings: BackboneSettings
    path: Path
    digest: str
    config: dict[str, Any] | None
    metadata: dict[str, str] = field(default_factory=dict)
    file_digest: str | None = None

    @property
    def embeds_as(self) -> str:
        """Alike for models whose embeddings may stand beside each other in a cache."""
        return self.file_digest or self.digest


def open_model(path: str | Path, *, num_threads: int = 0, on_cpu: bool = False) -> SavedModel:
    """Read a backbone; every rank by itself, where there are several.

    Args:
        path: an exported backbone (.safetensors, .onnx, .pt2) or a folder of those, of which the
            first in this order is taken; a checkpoint folder; or a run folder, of which the last
            complete checkpoint is taken, and the export where no checkpoint is left.
        num_threads, on_cpu: how onnxruntime computes, see `read_onnx`.

    Raises:
        ValueError: nothing usable is there, or it is damaged.
        RuntimeError: an .onnx file, and onnxruntime is not installed.
        OSError: a file cannot be read.
    """
    place = Path(path)
    if not place.is_dir():
        return _from_export(place, num_threads, on_cpu)
    if (place / ".metadata").is_file():
        return _from_checkpoint(place)
    found = complete_checkpoints(place / "checkpoints")
    if found:
        return _from_checkpoint(found[-1])
    for folder in (place / "export", place):
        for name in EXPORTS:
            if (folder / name).is_file():
                return _from_export(folder / name, num_threads, on_cpu)
    raise ValueError(
        f"{place} is neither a checkpoint nor a run folder with one, nor a folder of exports:"
        f" expected .metadata, checkpoints/step_*/.metadata, or {', '.join(EXPORTS)}"
    )


def _from_export(path: Path, num_threads: int, on_cpu: bool) -> SavedModel:
    config_file = path.parent.parent / "config.yaml"
    config = to_dict(load_config(config_file)) if config_file.is_file() else None
    if path.suffix not in (".onnx", ".pt2"):
        network, settings = load_backbone(path)
        metadata = read_metadata(path)
        return SavedModel(network.eval(), settings, path, weights_digest(network), config, metadata)
    if path.suffix == ".onnx":
        exported, metadata = read_onnx(path, num_threads=num_threads, on_cpu=on_cpu)
    else:
        exported, metadata = read_program(path)
    try:
        settings = BackboneSettings.from_metadata(metadata)
        digest = metadata["weights_sha256"]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} has no usable {error} in its metadata, expected a model of tools/export.py"
        ) from error
    return SavedModel(exported, settings, path, digest, config, metadata, file_digest(path))


def find_summary(model: SavedModel) -> dict[str, Any] | None:
    """summary.json of the run that the model is from, if the run has finished.

    Its verification is left out where it is of other weights: those of another step.
    """
    folder = model.path.resolve().parent.parent
    path = folder / "summary.json"
    if not path.is_file() or not (folder / "config.yaml").is_file():
        return None
    summary = read_summary(path)
    if summary.get("weights_sha256", model.digest) != model.digest:
        del summary["verification"]
    return summary


def learnt(model: SavedModel) -> dict[str, str]:
    """What is known of a model's training and thresholds: from its run, else from its file."""
    own = {name: model.metadata[name] for name in LEARNT if name in model.metadata}
    summary = find_summary(model)
    if summary is None:
        return own
    return own | learnt_facts(
        images=summary["images"],
        identities=summary["classes"],
        verification=summary.get("verification"),
    )


def _from_checkpoint(folder: Path) -> SavedModel:
    config = checkpoint_config(folder)
    settings = backbone_settings(config)
    network = settings.build()
    tensors = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    checkpoint.load_alone(folder, tensors)
    return SavedModel(network.eval(), settings, folder, weights_digest(network), to_dict(config))


def checkpoint_config(folder: Path) -> Config:
    """What a checkpoint was trained with.

    Raises:
        ValueError: neither the checkpoint nor its run says so, or what says so is damaged.
    """
    numbers = read_numbers(folder)
    if "config" in numbers:
        # Under the checkpoint's checksums, and of its very step: config.yaml may have gone on.
        try:
            return parse_config(json.dumps(numbers["config"]), f"{folder}/{NUMBERS}")
        except ValueError as error:
            raise ValueError(
                f"checkpoint {folder} is damaged, or of another version: {error}: take another"
            ) from error
    config_file = folder.resolve().parents[1] / "config.yaml"
    if not config_file.is_file():
        raise ValueError(
            f"{folder} is a checkpoint without its run: {config_file} says which backbone it is,"
            " put the checkpoint back into RUN/checkpoints"
        )
    return load_config(config_file)


def model_facts(path: Path, digest: str, settings: BackboneSettings) -> dict[str, str]:
    """What a page says about the model."""
    return {
        "model": str(path),
        "weights_sha256": digest,
        "backbone": settings.name,
        "embedding size": str(settings.embedding_size),
        "image size": f"{settings.image_size} pixels",
    }


def training_facts(model: SavedModel) -> dict[str, str]:
    """What a page says about a model's training, as far as it is known."""
    known = learnt(model)
    names = {"training_images": "training images", "training_identities": "training identities"}
    return {title: known[name] for name, title in names.items() if name in known}


def backbone_settings(config: Config) -> BackboneSettings:
    """What an export must say to be built again."""
    section = config.backbone
    return BackboneSettings(
        section.name,
        section.embedding_size,
        config.data.image_size,
        section.depths,
        section.widths,
    )
