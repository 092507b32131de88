"""Which kernels were the faster on this machine: measured once, kept in the user's cache folder.

`kappaface gpu-check` measures. What it found holds for a kind of GPU, the versions of torch and
Triton, and batches and embeddings of about one size; for anything else nothing is known.
"""

import functools
import importlib.metadata
import json
import logging
import os
from pathlib import Path

import torch

from kappaface_dist.whole_files import write_whole

logger = logging.getLogger(__name__)
# Global batches that are measured; others are taken for the nearest by ratio.
MEASURED_IMAGES = (256, 1024, 4096)


def path() -> Path:
    """Where this user's measurements are."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "kappaface_dist" / "head_kernels.json"


def key_of(device: torch.device, embedding_size: int, num_images: int) -> str:
    """What a measurement is kept by."""
    nearest = min(MEASURED_IMAGES, key=lambda n: max(n / num_images, num_images / n))
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    size = max(16, 1 << (embedding_size - 1).bit_length())
    return f"{name}, torch {torch.__version__}, triton {triton}, D {size}, {nearest} images"


def read() -> dict[str, dict[str, float]]:
    """Seconds of a step by the kernels' name, for each key; empty where nothing was measured."""
    try:
        found = json.loads(path().read_text(encoding="utf-8"))
        return {
            str(key): {str(name): float(seconds) for name, seconds in times.items()}
            for key, times in found.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        logger.warning(
            "%s, the measurements of the head's kernels, cannot be read (%s): chunks are used;"
            " delete it and run kappaface gpu-check",
            path(),
            error,
        )
        return {}


def keep(found: dict[str, dict[str, float]]) -> Path:
    """Add measurements, seconds by the kernels' name for each key, to those that are kept."""
    write_whole(path(), json.dumps(read() | found, indent=1, sort_keys=True) + "\n")
    fastest.cache_clear()
    return path()


@functools.cache
def fastest(device: torch.device, embedding_size: int, num_images: int) -> str:
    """ "tiles" or "chunks"; "chunks" where nothing was measured. Says which, once."""
    key = key_of(device, embedding_size, num_images)
    times = read().get(key, {})
    if not times.keys() >= {"tiles", "chunks"}:
        return "chunks"
    name = "tiles" if times["tiles"] < times["chunks"] else "chunks"
    words = ", ".join(f"{each} {seconds:.4g} s" for each, seconds in sorted(times.items()))
    logger.info("head.fused is auto: %s, the faster here (%s for %s)", name, words, key)
    return name
