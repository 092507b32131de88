"""Renders made-up identities: the embedded default dataset.

render_face(seed, identity, image) depends on its arguments alone. write_faces makes a training
record of it, with a long-tailed number of images per identity, and verification pairs of others.

Shapes: H W image size; P pairs, S pairs of one kind.
"""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from kappaface_dist.commands import deaf_to_interrupts, end_with_parent
from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.data.sources.recordio_writer import MAX_LABEL, RecordWriter
from kappaface_dist.evaluation.sets.pair_file import write_pairs
from kappaface_dist.made_up_faces.accessories import draw_accessories
from kappaface_dist.made_up_faces.features import (
    draw_body,
    draw_eyes,
    draw_mouth,
    draw_nose,
    draw_skin,
)
from kappaface_dist.made_up_faces.hair import draw_back_of_head, draw_beard, draw_front_hair
from kappaface_dist.made_up_faces.identity import (
    PAIRS,
    PIXELS,
    draw_difficulty,
    draw_identity,
    draw_num_images,
    draw_photo,
    numbered_generator,
)
from kappaface_dist.made_up_faces.render import SUPERSAMPLING, background, develop, make_head

# Identities for verification are numbered from here on: never met in training, whatever its size.
FIRST_UNSEEN = 1_000_000_000
UNSEEN_IMAGES = 10
MAX_PAIRS = 2000

PhotoNumber = tuple[int, int, int, int]  # seed, identity, image, image size
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


def render_face(seed: int, identity: int, image: int, image_size: int = 112) -> np.ndarray:
    """One photo of one made-up identity, uint8 [image_size, image_size, 3], RGB."""
    traits = draw_identity(seed, identity)
    photo = draw_photo(seed, identity, image)
    rng = numbered_generator(seed, PIXELS, identity, image)
    size = image_size * SUPERSAMPLING
    empty = background(rng, size)
    canvas = empty.copy()
    head = make_head(traits, photo, ImageDraw.Draw(canvas, "RGBA"), size)
    draw_body(head, rng)
    draw_back_of_head(head, photo)
    draw_skin(head, photo)
    draw_beard(head)
    draw_mouth(head, photo)
    draw_nose(head, photo)
    draw_eyes(head, photo)
    draw_front_hair(head, photo)
    draw_accessories(head, photo, rng)
    return develop(canvas, empty, head, photo, rng)


def face_jpeg(photo: PhotoNumber) -> bytes:
    """The photo (seed, identity, image, image size) as JPEG; its quality is part of the photo."""
    seed, identity, image, image_size = photo
    quality = 92 - round(abs(draw_photo(seed, identity, image).compression))
    return encode_jpeg(render_face(seed, identity, image, image_size), quality=quality)


def render_all(photos: Sequence[PhotoNumber], processes: int) -> Iterator[bytes]:
    """The JPEGs of photos, in their order, made by this many processes."""
    if processes == 1:
        yield from map(face_jpeg, photos)
        return
    # Fresh processes: a fork of one that runs threads (torch, a progress bar) may hang. And where
    # one is killed the executor raises, while multiprocessing.Pool waits for ever.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent)
    try:
        with deaf_to_interrupts():
            drawn = pool.map(face_jpeg, photos, chunksize=32)
        yield from drawn
    finally:
        pool.shutdown(cancel_futures=True)


def render_record(
    prefix: Path,
    counts: Sequence[int],
    unseen_counts: Sequence[int],
    *,
    seed: int,
    image_size: int,
    processes: int,
    progress: Progress,
) -> list[bytes]:
    """Write prefix.rec and prefix.idx with counts[i] photos of identity i, labelled i.

    Returns:
        unseen_counts[i] photos of the i-th identity that is not in the record, one after another.
    """
    identities = [*enumerate(counts), *enumerate(unseen_counts, FIRST_UNSEEN)]
    photos: list[PhotoNumber] = [
        (seed, identity, image, image_size)
        for identity, num_images in identities
        for image in range(num_images)
    ]
    payloads = iter(progress(render_all(photos, processes), len(photos)))
    with RecordWriter(prefix) as writer:
        for _, identity, *_ in photos[: sum(counts)]:
            writer.write(identity, next(payloads))
    return list(payloads)


def draw_pairs(seed: int, num_identities: int) -> tuple[np.ndarray, np.ndarray]:
    """Verification pairs of num_identities identities with UNSEEN_IMAGES images each.

    Returns:
        image numbers int64 [P, 2] (identity * UNSEEN_IMAGES + image), all different, and
        bool [P], True for the same identity; the two kinds alternate, so every fold is balanced.
    """
    rng = numbered_generator(seed, PAIRS, 0)
    same_S2 = pairs_of_same(rng, num_identities, UNSEEN_IMAGES)[: MAX_PAIRS // 2]
    num_same = len(same_S2)
    num_images = num_identities * UNSEEN_IMAGES
    candidate_S2 = np.sort(rng.integers(0, num_images, (8 * num_same + 640, 2)), axis=1)
    first_S, second_S = candidate_S2.T // UNSEEN_IMAGES
    candidate_S2 = candidate_S2[first_S != second_S]
    _, position = np.unique(candidate_S2, axis=0, return_index=True)
    return in_turns(same_S2, candidate_S2[np.sort(position)][:num_same])


def pairs_of_same(rng: np.random.Generator, num_identities: int, num_images: int) -> np.ndarray:
    """All pairs of two of an identity's num_images images, in random order, int64 [S, 2]."""
    first, second = np.triu_indices(num_images, k=1)
    offset = num_images * np.arange(num_identities)[:, None]
    return rng.permutation(np.stack([(offset + first).ravel(), (offset + second).ravel()], axis=1))


def in_turns(same_S2: np.ndarray, different_S2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two kinds of pairs, alternating [P, 2], and bool [P], True for the first kind."""
    pair_P2 = np.stack([same_S2, different_S2], axis=1).reshape(-1, 2)
    return pair_P2, np.tile([True, False], len(same_S2))


def contact_sheet(
    seed: int, identities: Iterable[int], columns: int, image_size: int
) -> Image.Image:
    """A picture to look at: a row per identity, its first images side by side."""
    rows = [
        np.concatenate([render_face(seed, i, k, image_size) for k in range(columns)], axis=1)
        for i in identities
    ]
    return Image.fromarray(np.concatenate(rows))


def check_request(
    num_identities: int, num_unseen: int, seed: int, image_size: int, processes: int
) -> None:
    """Raise ValueError with one sentence for a dataset that cannot be made."""
    for name, value, low, high in (
        ("identities", num_identities, 2, MAX_LABEL),
        ("unseen-identities", num_unseen, 2, MAX_LABEL),
        ("seed", seed, 0, 2**63),
        ("image-size", image_size, 32, 1024),
        ("processes", processes, 1, 1024),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}, but must be from {low} to {high}")


def unseen_names(pair_P2: np.ndarray, images_each: int) -> list[tuple[str, str]]:
    """Who is in both pictures of each pair, from the numbers of the images."""
    return [(f"unseen {a}", f"unseen {b}") for a, b in (pair_P2 // images_each).tolist()]


def write_faces(
    folder: str | Path,
    *,
    num_identities: int,
    num_unseen: int,
    seed: int,
    image_size: int,
    processes: int,
    progress: Progress = lambda items, total: items,
) -> dict[str, Any]:
    """Write train.rec, train.idx, property, unseen.bin and sheet.png to folder.

    Args:
        progress: wraps the iterable of encoded images, given their number (a progress bar).

    Returns:
        what was made: counts, files, images and difficulty per identity.

    Raises:
        ValueError: a setting is out of its range.
        OSError: the folder cannot be written.
        RuntimeError: a drawing process was killed.
    """
    check_request(num_identities, num_unseen, seed, image_size, processes)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    counts = [draw_num_images(seed, identity) for identity in range(num_identities)]
    unseen = render_record(
        folder / "train",
        counts,
        [UNSEEN_IMAGES] * num_unseen,
        seed=seed,
        image_size=image_size,
        processes=processes,
        progress=progress,
    )
    pair_P2, same_P = draw_pairs(seed, num_unseen)
    names = unseen_names(pair_P2, UNSEEN_IMAGES)
    write_pairs(folder / "unseen.bin", [unseen[i] for i in pair_P2.ravel()], same_P, names)
    (folder / "property").write_text(f"{num_identities},{image_size},{image_size}\n")
    contact_sheet(seed, range(min(num_identities, 12)), 10, image_size).save(folder / "sheet.png")
    return {
        "identities": num_identities,
        "images": sum(counts),
        "image_size": image_size,
        "seed": seed,
        "images_per_identity": counts,
        "difficulty": [round(draw_difficulty(seed, i), 4) for i in range(num_identities)],
        "unseen_identities": num_unseen,
        "unseen_images": len(unseen),
        "pairs": len(same_P),
        "same_pairs": int(same_P.sum()),
        "files": ["train.rec", "train.idx", "property", "unseen.bin", "sheet.png"],
    }
