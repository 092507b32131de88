"""Backbones as others publish them: the .pth files of InsightFace's trainer.

Such a file is a pickle of tensors by name. It is read by torch's restricted reader, which makes
tensors and refuses everything else.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

# What wrappers put before the names.
PREFIXES = ("module.", "backbone.", "_orig_mod.")


def load_published(path: str | os.PathLike[str], network: nn.Module) -> None:
    """Fill a network with the weights of a published file.

    Raises:
        ValueError: the file holds more than tensors, or not those of this network.
        OSError: the file cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}, expected a published backbone (.pth)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is not a file of tensors alone"
            f" ({str(error).strip().splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise ValueError(f"{path} is not a readable .pth file: {' '.join(reason)}") from error
    tensors = _plain_names(path, content)
    expected = network.state_dict()
    # Counts of batches that BatchNorm saw: very old files lack them, and nothing here uses them.
    tensors |= {k: v for k, v in expected.items() if k.endswith("num_batches_tracked")} | tensors
    found_shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    expected_shapes = {key: tuple(value.shape) for key, value in expected.items()}
    if found_shapes != expected_shapes:
        different = {key for key, _ in found_shapes.items() ^ expected_shapes.items()}
        example = min(different)
        raise ValueError(
            f"{path} does not hold the backbone of the configuration: {len(different)} tensors"
            f" differ, for example {example} is {found_shapes.get(example, 'absent')}, expected"
            f" {expected_shapes.get(example, 'none')}: set backbone.name, embedding_size and"
            " data.image_size to those of the file"
        )
    network.load_state_dict(tensors)


def _plain_names(path: str | os.PathLike[str], content: Any) -> dict[str, torch.Tensor]:
    if isinstance(content, dict) and isinstance(content.get("state_dict_backbone"), dict):
        content = content["state_dict_backbone"]  # a checkpoint of the same trainer
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected tensors by name")
    tensors = {}
    for name, tensor in content.items():
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        tensors[name] = tensor
    return tensors
