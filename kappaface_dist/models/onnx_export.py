"""A backbone as ONNX, for onnxruntime and other engines, checked against PyTorch.

The graph takes `image` [batch, 3, H, W], float32, RGB, (pixels - 127.5) / 127.5, and gives
`embedding` [batch, D], float32, of any length; the batch is of any size. In half precision weights
and arithmetic are float16, input and output stay float32.

Shapes: B images, D embedding size, H W image size.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kappaface_dist.models.export import BackboneSettings, export_metadata
from kappaface_dist.models.exported import import_runtime
from kappaface_dist.whole_files import whole_file

# The lowest that all our networks need, so that the most programs open them: PyTorch's exporter
# writes none below. ONNX 1.13 and onnxruntime 1.14 (2023) brought it.
OPSET = 18
CHECKED_BATCHES = (1, 2, 7, 64)
# Largest difference of a component from PyTorch's, and for float16 the smallest cosine.
TOLERANCE = 1e-4
SMALLEST_COSINE = 0.999


@dataclass(frozen=True)
class Comparison:
    """How far an exported model is from PyTorch, over all batch sizes that were tried.

    Attributes:
        difference: largest absolute difference of a component, in units of the embedding's root
            mean square where that is above 1, so that it does not grow with the embedding.
        cosine: smallest cosine between the two embeddings of an image.
        opset: of ONNX, read back from the file; None for another format.
    """

    batches: tuple[int, ...]
    difference: float
    cosine: float
    opset: int | None = None


def export_onnx(
    path: str | os.PathLike[str],
    model: nn.Module,
    settings: BackboneSettings,
    *,
    half: bool = False,
    opset: int = OPSET,
    facts: Mapping[str, str] | None = None,
) -> Comparison:
    """Write model as ONNX and compare it, run by onnxruntime, with PyTorch.

    Args:
        model: the bare network on the CPU, in eval mode.
        half: weights and arithmetic in float16.
        opset: what the file must be of.
        facts: what else the file is to say of itself (metadata.py).

    Raises:
        ValueError: this opset cannot be written.
        RuntimeError: onnx, onnxscript or onnxruntime are not installed; or the exported model's
            embeddings are not PyTorch's (the file is then not left behind).
    """
    onnx, runtime = _import_onnx(), import_runtime()
    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise ValueError(
            f"the opset is {opset}, expected {OPSET} to {newest}: PyTorch's exporter writes nothing"
            f" older than {OPSET}, the installed onnx knows nothing newer than {newest}"
        )
    example = torch.zeros(2, 3, settings.image_size, settings.image_size)
    with _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["image"],
            output_names=["embedding"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    if half:
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        converted = OnnxModel(convert_float_to_float16(graph, keep_io_types=True))
        converted.topological_sort()  # the conversion puts its casts last, ONNX wants them in order
        graph = converted.model
    _leave_out_traces(graph)
    onnx.helper.set_model_props(graph, export_metadata(settings, model, facts))
    onnx.checker.check_model(graph)
    found_opset = {entry.domain: entry.version for entry in graph.opset_import}[""]
    if found_opset != opset:
        raise ValueError(
            f"opset {opset} was asked for and the exporter wrote {found_opset}: ask for {OPSET} or"
            f" {found_opset}"
        )
    with whole_file(Path(path)) as unfinished:
        onnx.save(graph, unfinished)
        session = runtime.InferenceSession(str(unfinished), providers=["CPUExecutionProvider"])
        found = compare(lambda image: session.run(None, {"image": image})[0], model, settings)
        found = replace(found, opset=found_opset)
        _check(found, Path(path), half)
    return found


def compare(
    run: Callable[[np.ndarray], Any], model: nn.Module, settings: BackboneSettings
) -> Comparison:
    """Run both on the same made-up images in batches of several sizes.

    Args:
        run: maps float32 numpy [B, 3, H, W] to [B, D].
    """
    rng = np.random.default_rng(0)
    difference, cosine = 0.0, 1.0
    for batch in CHECKED_BATCHES:
        shape = (batch, 3, settings.image_size, settings.image_size)
        image = rng.uniform(-1, 1, shape).astype(np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(image)).numpy().astype(np.float64)
        found = np.asarray(run(image), dtype=np.float64)
        if found.shape != expected.shape or not np.isfinite(found).all():
            return Comparison(CHECKED_BATCHES, float("inf"), -1.0)
        size = max(1.0, float(np.sqrt(np.square(expected).mean())))
        difference = max(difference, float(np.abs(found - expected).max()) / size)
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        products = (found * expected).sum(axis=1)
        cosine = min(cosine, float((products / np.maximum(norms, 1e-30)).min()))
    return Comparison(CHECKED_BATCHES, difference, cosine)


def _leave_out_traces(graph: Any) -> None:
    """Take out where in whose folders each operator was called: no reader of the file needs it."""
    parts = [graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.initializer]
    parts += [*graph.graph.input, *graph.graph.output]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


def _import_onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401 - what torch.onnx.export needs
    except ImportError as error:
        raise RuntimeError(
            f"ONNX export needs {error.name}: pip install 'kappaface_dist[export]'"
        ) from error
    return onnx


def _check(found: Comparison, path: Path, half: bool) -> None:
    if half and found.cosine < SMALLEST_COSINE:
        raise RuntimeError(
            f"{path.name}: in float16 a cosine with PyTorch's embedding is {found.cosine:.4f},"
            f" below {SMALLEST_COSINE}: an activation probably exceeds float16's range, use fp32"
        )
    if not half and found.difference > TOLERANCE:
        raise RuntimeError(
            f"{path.name}: onnxruntime's embeddings differ from PyTorch's by"
            f" {found.difference:.2e}, more than {TOLERANCE}: not written"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs optional packages that it does not find, and warns of its own calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
