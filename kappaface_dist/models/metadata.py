"""What an exported model says of itself: its input, what it was trained on, its thresholds.

Strings by name, as safetensors and ONNX keep them; what is not known is left out.
"""

import json
from collections.abc import Mapping
from typing import Any

from kappaface_dist.data.align import reference_points
from kappaface_dist.data.normalisation import PIXEL_MEAN, PIXEL_SCALE


def input_facts(image_size: int) -> dict[str, str]:
    """How the input is made from a photo: (pixels - mean) / std of an aligned face."""
    points = reference_points(image_size).round(4).tolist()
    return {
        "colour_order": "RGB",
        "mean": f"{PIXEL_MEAN:g}",
        "std": f"{PIXEL_SCALE:g}",
        "layout": "batch, channel, height, width",
        # Where left eye, right eye, nose, left and right corner of the mouth lie, x and y.
        "alignment_points": json.dumps(points),
    }


def learnt_facts(
    *,
    images: int | None,
    identities: int | None,
    verification: Mapping[str, Mapping[str, Any]] | None,
) -> dict[str, str]:
    """What the model was trained on, and the thresholds of the sets that it was tested on.

    Args:
        verification: PairResult.summary() by set.
    """
    facts = {"training_images": images, "training_identities": identities}
    found = {name: str(value) for name, value in facts.items() if value is not None}
    thresholds = {
        name: {r: c for r, c in result["threshold_at_far"].items() if c is not None}
        for name, result in (verification or {}).items()
        if result.get("threshold_at_far")
    }
    if any(thresholds.values()):
        found["thresholds"] = json.dumps({k: v for k, v in thresholds.items() if v})
    return found


LEARNT = ("training_images", "training_identities", "thresholds")


def read_thresholds(metadata: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """The cosine from which on two faces are one person's, by set and false accept rate."""
    return json.loads(metadata.get("thresholds", "{}"))
