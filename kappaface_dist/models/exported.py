"""Exports that compute in their own way: .onnx by onnxruntime, .pt2 by PyTorch, as networks.

Shapes: B images, D embedding size, H W image size.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

METADATA_FILE = "metadata.json"
Run = Callable[[np.ndarray], np.ndarray]


class ExportedNetwork(nn.Module):
    """A function of arrays, float32 [B, 3, H, W] to [B, D], where a network is expected.

    Attributes:
        on_gpu: whether it computes on a GPU, wherever its images come from.
    """

    def __init__(self, run: Run, *, on_gpu: bool = False):
        super().__init__()
        self.run, self.on_gpu = run, on_gpu

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        embedding_BD = self.run(np.ascontiguousarray(image_B3HW.cpu().numpy()))
        return torch.from_numpy(embedding_BD).to(image_B3HW.device)


def import_runtime() -> Any:
    """The module onnxruntime.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(
            "ONNX models are run by onnxruntime: pip install 'kappaface_dist[export]'"
        ) from error
    return onnxruntime


def read_onnx(
    path: Path, *, num_threads: int = 0, on_cpu: bool = False
) -> tuple[ExportedNetwork, dict[str, str]]:
    """The network of an .onnx file and its metadata.

    Args:
        num_threads: of onnxruntime, 0 for its own choice.
        on_cpu: though onnxruntime may have something faster.

    Raises:
        ValueError: onnxruntime does not read it.
        RuntimeError: onnxruntime is not installed.
        OSError: there is no such file.
    """
    runtime = import_runtime()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file, expected an exported backbone.onnx")
    chosen = ["CPUExecutionProvider"] if on_cpu else runtime.get_available_providers()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    try:
        session = runtime.InferenceSession(str(path), options, providers=chosen)
    except Exception as error:  # onnxruntime's own errors derive from nothing narrower
        raise ValueError(f"{path} is not a readable ONNX model: {error}") from error
    name = session.get_inputs()[0].name
    network = ExportedNetwork(
        lambda image_B3HW: session.run(None, {name: image_B3HW})[0],
        on_gpu=session.get_providers()[0] != "CPUExecutionProvider",
    )
    return network, dict(session.get_modelmeta().custom_metadata_map)


def read_program(path: Path) -> tuple[ExportedNetwork, dict[str, str]]:
    """The network of a .pt2 file, computed on the CPU, and its metadata.

    Raises:
        ValueError: PyTorch does not read it.
        OSError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file, expected an exported backbone.pt2")
    extra = {METADATA_FILE: ""}
    try:
        module = torch.export.load(path, extra_files=extra).module()
    except Exception as error:  # zip, pickle and JSON errors, all of a damaged file
        raise ValueError(
            f"{path} is not a readable torch.export program ({type(error).__name__}: {error})"
        ) from error

    def run(image_B3HW: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(image_B3HW)).numpy()

    return ExportedNetwork(run), json.loads(extra[METADATA_FILE] or "{}")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
