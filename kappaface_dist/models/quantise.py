"""A backbone as ONNX in whole numbers of 8 bits, by onnxruntime's own quantizer.

Static: the ranges of activations come from calibration images. Weights have a scale for each
channel and 7 bits: products of 8 bits overflow on CPUs without VNNI. The first and the last layer
stay in float32 where the embeddings of other images are then nearer to those of float32.

Shapes: B images, D embedding size, H W image size.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from kappaface_dist.models.exported import import_runtime
from kappaface_dist.whole_files import write_whole

# Layers with weights to multiply by.
LAYERS = ("Conv", "Gemm", "MatMul")
CALIBRATION_BATCH = 16
# Of five calibration images one judges which layers are left out.
JUDGED = 5


def quantise(
    float_model: Path, path: Path, image_I3HW: np.ndarray, metadata: Mapping[str, str]
) -> tuple[list[str], dict[str, float]]:
    """Write the quantized form of an exported model.

    Args:
        float_model: the same network in float32 (export_onnx).
        image_I3HW: normalised images, float32, for calibration and for the choice of layers.
        metadata: what the file says of itself.

    Returns:
        The layers that stay in float32, and by choice ("all layers in int8", ...) the mean cosine
        with float32's embeddings on the images that were kept for this.

    Raises:
        ValueError: there are too few images.
        RuntimeError: onnx or onnxruntime is not installed, or the quantizer fails.
    """
    judged = np.arange(len(image_I3HW)) % JUDGED == JUDGED - 1
    if not judged.any():
        raise ValueError(
            f"{len(image_I3HW)} images can be read for calibration, expected {JUDGED} or more"
        )
    runtime = import_runtime()
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as name, _quiet():
        folder = Path(name)
        prepared = folder / "prepared.onnx"
        # Symbolic shapes are of use to transformers alone, and cost sympy.
        quant_pre_process(str(float_model), str(prepared), skip_symbolic_shape=True)
        layers = [n.name for n in onnx.load(prepared).graph.node if n.op_type in LAYERS]
        choices = {
            "all layers in int8": [],
            "first and last layer in float32": list(dict.fromkeys([layers[0], layers[-1]])),
        }
        expected_BD = _run(runtime, float_model, image_I3HW[judged])
        cosines: dict[str, float] = {}
        for number, (choice, left_out) in enumerate(choices.items()):
            made = folder / f"{number}.onnx"
            _quantise_static(prepared, made, image_I3HW[~judged], left_out)
            cosines[choice] = _mean_cosine(_run(runtime, made, image_I3HW[judged]), expected_BD)
        best = max(cosines, key=lambda choice: cosines[choice])
        write_whole(path, (folder / f"{list(choices).index(best)}.onnx").read_bytes())
    set_metadata(path, metadata)
    return choices[best], cosines


def set_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """What an .onnx file says of itself, in place of what it said."""
    import onnx

    graph = onnx.load(path)
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, dict(metadata))
    write_whole(path, graph.SerializeToString(deterministic=True))


def _quantise_static(
    model: Path, path: Path, image_I3HW: np.ndarray, left_out: Sequence[str]
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    batches = iter(
        np.split(image_I3HW, range(CALIBRATION_BATCH, len(image_I3HW), CALIBRATION_BATCH))
    )
    quantize_static(
        str(model),
        str(path),
        SimpleNamespace(get_next=lambda: next(({"image": batch} for batch in batches), None)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=list(left_out),
    )


def _run(runtime: Any, model: Path, image_B3HW: np.ndarray) -> np.ndarray:
    session = runtime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    batches = np.split(image_B3HW, range(CALIBRATION_BATCH, len(image_B3HW), CALIBRATION_BATCH))
    rows = [session.run(None, {"image": batch})[0] for batch in batches]
    return np.concatenate(rows).astype(np.float64)


def _mean_cosine(found_BD: np.ndarray, expected_BD: np.ndarray) -> float:
    norms_B = np.linalg.norm(found_BD, axis=1) * np.linalg.norm(expected_BD, axis=1)
    return float(np.mean((found_BD * expected_BD).sum(axis=1) / np.maximum(norms_B, 1e-30)))


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer tells what it leaves as it is, by the root logger."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
