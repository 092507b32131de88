"""The teacher's embeddings of all images of a run, made once and kept beside the data.

They stand for the teacher where it would see the same pixels: without augmentation, or mirrored,
which is kept, too. The file says which teacher and which pictures it is of; of others it is stale.
Shapes: B images of a batch, T numbers of the teacher's embedding.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config
from kappaface_dist.data.images import decode_image
from kappaface_dist.data.loading.stored_rows import StoredRows, open_rows, write_rows
from kappaface_dist.data.normalisation import normalise
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.evaluation.embedding.embed import decoded_ahead
from kappaface_dist.models.teacher import load_teacher
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.fit import open_here
from kappaface_dist.training.problem import picture_digest

REMEDY = "python tools/cache_teacher.py CONFIG writes it anew"


def write_cache(
    config: Config,
    device: torch.device,
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write distill.cache of a configuration; returns how many images, and how many without one.

    Raises:
        ValueError: there is no teacher or no name for the file, or as `load_teacher` and the data.
    """
    if config.distill.cache is None or config.distill.model is None:
        raise ValueError("distill.model, the teacher, and distill.cache, the file, must be set")
    if Path(config.distill.cache).is_dir():
        raise ValueError(f"distill.cache {config.distill.cache} is a folder: name a file")
    (own,) = datasets(config).values()
    catalog = open_here(own)
    size = config.data.image_size
    teacher = load_teacher(config.distill.model, size)
    network = teacher.network.to(device).eval()
    half = config.precision == "bf16"
    counts = {"images": catalog.num_images, "without": 0}

    def decode(index: int) -> np.ndarray | None:
        try:
            return decode_image(catalog.read(index), size)
        except (ValueError, OSError):
            return None  # a run takes another image in its place

    def embed(image_B3HW: torch.Tensor) -> np.ndarray:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            row_BT = network(image_B3HW).float()
        return F.normalize(row_BT, dim=1).cpu().numpy()

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        numbers = np.arange(catalog.num_images)
        batches = [part.tolist() for part in np.split(numbers, numbers[batch_size::batch_size])]
        done = 0
        for found in decoded_ahead(batches, decode):
            readable_B = np.array([pixels is not None for pixels in found])
            blank = np.zeros((size, size, 3), np.uint8)
            pixels_BHW3 = np.stack([blank if pixels is None else pixels for pixels in found])
            image_B3HW = normalise(torch.from_numpy(pixels_BHW3).to(device))
            seen = (image_B3HW, image_B3HW.flip(-1))
            rows = [embed(image) for image in seen[: 2 if config.data.augment == "flip" else 1]]
            for row_BT in rows:
                row_BT[~readable_B] = np.nan
            counts["without"] += int((~np.isfinite(rows[0]).all(axis=1)).sum())
            yield rows[0], rows[1] if len(rows) > 1 else None
            done += len(found)
            progress(done, catalog.num_images)

    write_rows(Path(config.distill.cache), parts(), _facts(config, catalog, teacher.digest))
    return counts


def open_cache(config: Config, catalogs: dict[str, Catalog]) -> StoredRows | None:
    """distill.cache, where a configuration has one; collective, mapped by all ranks.

    Raises:
        ValueError: it is not there, damaged, or of other pictures.
    """
    if config.distill.cache is None:
        return None
    path, (catalog,) = Path(config.distill.cache), catalogs.values()
    rows = parallel.rank0_first(lambda: open_rows(path))
    expected = _facts(config, catalog, rows.facts.get("teacher", ""))
    for name, value in expected.items():
        if (found := rows.facts.get(name, "nothing")) != value:
            raise ValueError(
                f"distill.cache {path} is of another dataset or image size ({name}: {found[:16]},"
                f" of this run {value[:16]}): {REMEDY}"
            )
    if config.data.augment == "flip" and rows.mirrored_IT is None:
        raise ValueError(
            f"distill.cache {path} has no embeddings of mirrored images, and data.augment is flip:"
            f" set it to none, or {REMEDY}"
        )
    return rows


def check_teacher(config: Config, rows: StoredRows, digest: str) -> None:
    """Raise ValueError unless the file is of the teacher with these weights."""
    if rows.facts["teacher"] != digest:
        raise ValueError(
            f"distill.cache {config.distill.cache} is of a teacher of the weights"
            f" {rows.facts['teacher'][:16]}, and distill.model has {digest[:16]}: {REMEDY}"
        )


def _facts(config: Config, catalog: Catalog, teacher: str) -> dict[str, str]:
    return {
        "images": str(catalog.num_images),
        "pictures": picture_digest(catalog),
        "image_size": str(config.data.image_size),
        "teacher": teacher,
    }
