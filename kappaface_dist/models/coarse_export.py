"""Exports in coarser arithmetic than float32, with a verdict on what that costs."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kappaface_dist.evaluation.sets.pair_file import PairFile
from kappaface_dist.models.calibration import calibration_images
from kappaface_dist.models.export import export_metadata
from kappaface_dist.models.exported import read_onnx
from kappaface_dist.models.metadata import learnt_facts
from kappaface_dist.models.quantise import quantise, set_metadata
from kappaface_dist.models.saved_model import SavedModel
from kappaface_dist.models.verdict import Verdict, judge

logger = logging.getLogger(__name__)


def export_int8(
    path: Path,
    reference: Path,
    model: SavedModel,
    facts: Mapping[str, str],
    calibrate: str,
    num_images: int,
) -> tuple[dict[str, Any], str]:
    """Write the quantized file; returns its entry in a report, and a sentence.

    Args:
        reference: the same network as ONNX in float32.
        facts: what else the file is to say of itself (metadata.py).
        calibrate: a dataset, or a folder of images, of which num_images are looked at.

    Raises:
        ValueError: too few images are readable.
    """
    images, unreadable = calibration_images(calibrate, num_images, model.settings.image_size)
    for where, why in unreadable:
        logger.warning("left out of the calibration: %s: %s", where, why)
    # float32's thresholds are not this file's.
    own = {name: value for name, value in facts.items() if name != "thresholds"}
    kept, cosines = quantise(
        reference, path, images, export_metadata(model.settings, model.network, own)
    )
    choice = max(cosines, key=lambda name: cosines[name])
    entry = {
        "float32_layers": kept,
        "mean_cosine": cosines,
        "calibration_images": len(images),
        "unreadable": [{"image": where, "reason": why} for where, why in unreadable],
    }
    return entry, (
        f"ONNX, static int8 (weights by channel), {choice}, any batch size; mean cosine with"
        f" float32 {cosines[choice]:.5f}, calibrated with {len(images)} images"
    )


def verify_coarse(
    path: Path,
    reference: Path,
    model: SavedModel,
    facts: Mapping[str, str],
    sets: Mapping[str, PairFile],
    batch_size: int,
    num_replicates: int,
) -> Verdict:
    """Compare a file with float32, and write the thresholds that it was found to have into it.

    Args:
        reference: the same network as ONNX in float32.
        facts: what else the file is to say of itself.
        sets: verification sets by name.
        num_replicates: of the bootstrap over people; 0 for no intervals.

    Raises:
        ValueError: an image of a set is not readable, or a set gives no accuracy.
    """
    verdict = judge(
        read_onnx(reference)[0],
        read_onnx(path)[0],
        (reference, path),
        sets,
        image_size=model.settings.image_size,
        batch_size=batch_size,
        num_replicates=num_replicates,
    )
    summaries = {name: result.summary() for name, result in verdict.results.items()}
    own = learnt_facts(images=None, identities=None, verification=summaries)
    set_metadata(path, export_metadata(model.settings, model.network, {**facts, **own}))
    return verdict
