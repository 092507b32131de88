"""Opens what training leaves behind: an exported backbone, a checkpoint, or a whole run folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kappaface_dist.checkpoint import tensors as checkpoint
from kappaface_dist.checkpoint.folder import NUMBERS, complete_checkpoints, read_numbers
from kappaface_dist.config.file import load_config, parse_config, to_dict
from kappaface_dist.config.keys import Config
from kappaface_dist.models.export import BackboneSettings, load_backbone, weights_digest


@dataclass(frozen=True)
class SavedModel:
    """A backbone with its weights, on the CPU and in eval mode, and where it came from.

    Attributes:
        path: the file or checkpoint folder that was read.
        digest: SHA-256 of the weights, in hexadecimal; the same in a checkpoint and its export.
        config: of the run, where the run's config.yaml is beside the weights.
    """

    network: nn.Module
    settings: BackboneSettings
    path: Path
    digest: str
    config: dict[str, Any] | None


def open_model(path: str | Path) -> SavedModel:
    """Read a backbone; every rank by itself, where there are several.

    Args:
        path: an exported backbone (.safetensors); a checkpoint folder; or a run folder, of which
            the last complete checkpoint is taken, and the export where no checkpoint is left.

    Raises:
        ValueError: nothing usable is there, or it is damaged.
        OSError: a file cannot be read.
    """
    place = Path(path)
    if not place.is_dir():
        return _from_export(place)
    if (place / ".metadata").is_file():
        return _from_checkpoint(place)
    found = complete_checkpoints(place / "checkpoints")
    if found:
        return _from_checkpoint(found[-1])
    export = place / "export" / "backbone.safetensors"
    if export.is_file():
        return _from_export(export)
    raise ValueError(
        f"{place} is neither a checkpoint nor a run folder with one: expected .metadata,"
        " checkpoints/step_*/.metadata or export/backbone.safetensors in it"
    )


def _from_export(path: Path) -> SavedModel:
    network, settings = load_backbone(path)
    config = path.parent.parent / "config.yaml"
    found = to_dict(load_config(config)) if config.is_file() else None
    return SavedModel(network.eval(), settings, path, weights_digest(network), found)


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
        return parse_config(json.dumps(numbers["config"]), f"{folder}/{NUMBERS}")
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
