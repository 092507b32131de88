"""A trained backbone as one file: safetensors, with what is needed to build it again."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from kappaface_dist.backbones import build_backbone
from kappaface_dist.models.metadata import input_facts
from kappaface_dist.whole_files import whole_file

logger = logging.getLogger(__name__)
SEAL = "metadata_sha256"


@dataclass(frozen=True)
class BackboneSettings:
    """What build_backbone needs to make the network of an exported file.

    Rates of dropping are not among it: they act in training only, and change no name or shape.
    """

    name: str
    embedding_size: int
    image_size: int
    depths: Sequence[int] | None = None
    widths: Sequence[int] | None = None

    def __post_init__(self) -> None:
        # Tuples, whatever a configuration or a file gave: equal settings compare equal.
        for key in ("depths", "widths"):
            value = getattr(self, key)
            object.__setattr__(self, key, tuple(value) if value else None)

    def build(self) -> nn.Module:
        return build_backbone(**asdict(self))

    def to_metadata(self) -> dict[str, str]:
        """As strings; what is not set is left out."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return {k: json.dumps(v) if isinstance(v, tuple) else str(v) for k, v in known.items()}

    @staticmethod
    def from_metadata(metadata: dict[str, str]) -> "BackboneSettings":
        """The inverse; KeyError or ValueError where something is missing or no number."""
        return BackboneSettings(
            metadata["name"],
            int(metadata["embedding_size"]),
            int(metadata["image_size"]),
            # "None": as exports of earlier versions have it where nothing was set.
            *(
                json.loads(metadata.get(key, "null").replace("None", "null"))
                for key in ("depths", "widths")
            ),
        )


def save_backbone(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    name: str,
    embedding_size: int,
    image_size: int,
    depths: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the parameters and buffers of build_backbone(name, ...); whole or not at all.

    The same arguments give the same bytes.

    Args:
        model: the network itself, without a wrapper of DDP or torch.compile around it.
        facts: what else the file is to say of itself (metadata.py).
    """
    settings = BackboneSettings(name, embedding_size, image_size, depths, widths)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with torch.device("meta"):  # names only: no memory, no initialisation
        expected = settings.build()
    assert tensors.keys() == expected.state_dict().keys(), f"the model is not a bare {name}"
    with whole_file(Path(path)) as unfinished:
        metadata = export_metadata(settings, model, facts)
        try:
            save_file(tensors, unfinished, metadata | {SEAL: metadata_digest(metadata)})
        except SafetensorError as error:
            raise RuntimeError(f"{path} could not be written: {error}") from error
        _sort_metadata(unfinished)


def export_metadata(
    settings: BackboneSettings, model: nn.Module, facts: Mapping[str, str] | None
) -> dict[str, str]:
    """All that an export says of itself: strings, what is not known left out."""
    return {
        **settings.to_metadata(),
        **input_facts(settings.image_size),
        "weights_sha256": weights_digest(model),
        **(facts or {}),
    }


def _sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in order: its writer has another one in each process."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= size, "the same header takes more room"
        file.seek(8)
        file.write(text.ljust(size))


def metadata_digest(metadata: Mapping[str, str]) -> str:
    """SHA-256 over what an exported file says of itself, but for this very number."""
    content = sorted(item for item in metadata.items() if item[0] != SEAL)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the parameters and buffers in the order of their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # A view as bytes exists for every type, numpy knows no bfloat16.
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What an exported .safetensors file says of itself."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def load_backbone(path: str | os.PathLike[str]) -> tuple[nn.Module, BackboneSettings]:
    """Build the network of an exported file, on the CPU and in training mode, with its weights.

    Raises:
        ValueError: the file is damaged, or is not such an export.
        OSError: the file cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file, expected an exported backbone.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}): is the file complete?"
        ) from error
    try:
        settings = BackboneSettings.from_metadata(metadata)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} has the metadata {metadata}, expected name, embedding_size and image_size as"
            " this project's export writes them"
        ) from error
    model = settings.build()
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if found != expected:
        different = {key for key, _ in found.items() ^ expected.items()}
        example = min(different)
        raise ValueError(
            f"{path} does not hold a {settings.name} of {settings.embedding_size} numbers at"
            f" {settings.image_size} pixels: {len(different)} tensors differ, for example {example}"
            f" is {found.get(example, 'absent')}, expected {expected.get(example, 'none')}"
        )
    model.load_state_dict(tensors)
    _check_sums(Path(path), model, metadata)
    return model, settings


def _check_sums(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    if not {SEAL, "weights_sha256"} & metadata.keys():
        logger.warning("%s is of an earlier version, without checksums: it is used as it is", path)
    elif metadata.get(SEAL) != metadata_digest(metadata):
        raise ValueError(f"{path} is damaged: its metadata do not have their checksum, export anew")
    elif metadata.get("weights_sha256") != weights_digest(model):
        raise ValueError(f"{path} is damaged: its weights do not have their checksum, export anew")
