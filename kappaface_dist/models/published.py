"""Backbones as others publish them: the .pth files of InsightFace's trainer.

Such a file is a pickle of tensors by name. It is read by torch's restricted reader, which makes
tensors and refuses everything else.
"""

import os
from pathlib import Path

import torch
from torch import nn

from kappaface_dist.restricted_pickle import MALFORMED

# Where training scripts put the backbone's tensors within their checkpoint.
SECTIONS = ("state_dict_backbone", "state_dict", "model", "backbone")
# What wrappers put before the names.
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
# Counts steps, decides nothing, and is absent from old files.
COUNTER = "num_batches_tracked"


def load_published(path: str | os.PathLike[str], network: nn.Module) -> None:
    """Fill a network with the weights of a published file.

    Raises:
        ValueError: the file holds more than tensors, or not those of this network.
        OSError: the file cannot be read.
    """
    tensors = read_published(path)
    expected = network.state_dict()
    tensors |= {k: v for k, v in expected.items() if k.endswith(COUNTER)} | tensors
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


def read_published(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The backbone's tensors, under their bare names.

    Raises:
        ValueError: the file is not readable as tensors only.
        OSError: the file cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file, expected a backbone checkpoint (.pth)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (*MALFORMED, RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} is not a checkpoint of plain tensors ({reason}); a file that needs more than"
            " tensors could run code and is refused"
        ) from error
    for section in SECTIONS:
        if isinstance(content, dict) and isinstance(content.get(section), dict):
            content = content[section]
            break
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a state_dict")
    tensors = {}
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            continue
        bare = str(key)
        while prefix := next((p for p in PREFIXES if bare.startswith(p)), None):
            bare = bare.removeprefix(prefix)
        tensors[bare] = value
    return tensors
