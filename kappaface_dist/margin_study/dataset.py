"""The images of a comparison, decoded once and shared by all its processes.

Shapes: I training images, C classes, M images of unseen people, P pairs, H W image size.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kappaface_dist.data.images import decode_image
from kappaface_dist.data.sources.catalog import Catalog, open_catalog
from kappaface_dist.evaluation.protocol import NUM_FOLDS
from kappaface_dist.evaluation.sets.pair_file import PairFile, read_pairs, write_pairs
from kappaface_dist.made_up_faces.dataset import (
    Progress,
    check_request,
    in_turns,
    pairs_of_same,
    render_record,
    unseen_names,
)
from kappaface_dist.made_up_faces.identity import draw_num_images

# A longer tail than make_faces.py's: classes of two and three images are where estimators differ.
FEWEST_IMAGES, MOST_IMAGES = 2, 60
UNSEEN_IMAGES = 8
# JPEG at the few pixels that a small network sees would leave only blocks of a face.
RENDER_SIZE = 64


@dataclass(frozen=True)
class StudyImages:
    """Training images, and pairs of images of people who are not among them.

    Attributes:
        image_IHW3, unseen_MHW3: uint8, RGB.
        count_C: training images of each class.
        pair_P2: numbers of the two images of each pair in unseen_MHW3.
        same_P: whether they show one person.
    """

    image_IHW3: np.ndarray
    label_I: np.ndarray
    count_C: np.ndarray
    unseen_MHW3: np.ndarray
    pair_P2: np.ndarray
    same_P: np.ndarray


ARRAYS = tuple(StudyImages.__annotations__)


def render_people(
    folder: Path,
    *,
    num_identities: int,
    num_unseen: int,
    seed: int,
    processes: int,
    progress: Progress = lambda items, total: items,
) -> tuple[Path, Path]:
    """Write a record of made-up people with a long tail, and pairs of others.

    A person's number of images and difficulty are independent draws. The pairs are all pairs of two
    images of one unseen person, and as many of different ones.

    Returns:
        The paths of the record and of the pairs, which are kept if they are there.

    Raises:
        ValueError: a number is out of its range.
    """
    check_request(num_identities, num_unseen, seed, RENDER_SIZE, processes)
    record, pairs = folder / "train.rec", folder / "unseen.bin"
    if pairs.is_file():
        return record, pairs
    folder.mkdir(parents=True, exist_ok=True)
    counts = [draw_num_images(seed, i, FEWEST_IMAGES, MOST_IMAGES) for i in range(num_identities)]
    unseen = render_record(
        folder / "train",
        counts,
        [UNSEEN_IMAGES] * num_unseen,
        seed=seed,
        image_size=RENDER_SIZE,
        processes=processes,
        progress=progress,
    )
    pair_P2, same_P = _all_pairs(num_unseen, seed)
    names = unseen_names(pair_P2, UNSEEN_IMAGES)
    write_pairs(pairs, [unseen[i] for i in pair_P2.ravel()], same_P, names)
    return record, pairs


def _all_pairs(num_identities: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of one identity's images, and as many of different ones, in turns."""
    rng = np.random.default_rng(seed)
    same_S2 = pairs_of_same(rng, num_identities, UNSEEN_IMAGES)
    first_S = rng.integers(0, num_identities, len(same_S2))
    second_S = (first_S + rng.integers(1, num_identities, len(same_S2))) % num_identities
    different_S2 = np.stack([first_S, second_S], axis=1) * UNSEEN_IMAGES
    different_S2 += rng.integers(0, UNSEEN_IMAGES, different_S2.shape)
    return in_turns(same_S2, different_S2)


def decode_dataset(
    folder: Path, train: str | Path, pairs: Path, image_size: int, fewest: int | None = None
) -> StudyImages:
    """Decode a dataset and a verification set into folder, where they are memory-mapped from.

    Args:
        train: as for `data.train` of a run.
        fewest: make the dataset long-tailed: every class keeps only its first images, as many as a
            draw from a tail between this number and the largest class says.

    Raises:
        ValueError: an image is unreadable, or the data cannot be compared on.
    """
    catalog = open_catalog(train)
    kept_I = np.arange(catalog.num_images)
    if fewest is not None:
        kept_I = _long_tail(catalog, fewest)
    label_I = np.asarray(catalog.label_I)[kept_I].astype(np.int64)
    pair_file = read_pairs(pairs)
    _check(catalog, pair_file, pairs)
    # Equal payloads are one image; a set names most of its images many times.
    numbers: dict[bytes, int] = {}
    pair_P2 = np.array(
        [numbers.setdefault(payload, len(numbers)) for payload in pair_file.payloads]
    ).reshape(-1, 2)
    arrays = {
        "image_IHW3": _decode_all(
            (catalog.read(i), catalog.where(i), image_size) for i in kept_I.tolist()
        ),
        "label_I": label_I,
        "count_C": np.bincount(label_I, minlength=catalog.num_classes),
        "unseen_MHW3": _decode_all(
            (payload, f"{pairs} image {i}", image_size) for payload, i in numbers.items()
        ),
        "pair_P2": pair_P2,
        "same_P": np.asarray(pair_file.same_P),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return load_dataset(folder)


def load_dataset(folder: Path) -> StudyImages:
    """The dataset that decode_dataset left in folder."""
    return StudyImages(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS))


def _long_tail(catalog: Catalog, fewest: int) -> np.ndarray:
    most = int(catalog.count_C.max())
    if not 1 <= fewest <= most:
        raise ValueError(
            f"--long-tail is {fewest}, expected 1 to {most}, the images of the largest class"
        )
    left_C = [draw_num_images(0, c, fewest, most) for c in range(catalog.num_classes)]
    kept = []
    for image, label in enumerate(catalog.label_I.tolist()):
        if left_C[label] > 0:
            left_C[label] -= 1
            kept.append(image)
    return np.array(kept)


def _check(catalog: Catalog, pairs: PairFile, path: Path) -> None:
    if catalog.num_classes < 2:
        raise ValueError("the training data has one class, a comparison needs two at least")
    num_same = int(pairs.same_P.sum())
    # A third of each kind must fill the folds of the protocol.
    needed = 3 * NUM_FOLDS
    if min(num_same, pairs.num_pairs - num_same) < needed:
        raise ValueError(
            f"{path} has {num_same} same and {pairs.num_pairs - num_same} different pairs, a"
            f" comparison needs {needed} of each at least"
        )


def _decode_all(images: Iterable[tuple[bytes, str, int]]) -> np.ndarray:
    pixels = []
    for payload, where, image_size in images:
        try:
            pixels.append(decode_image(payload, image_size))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return np.stack(pixels)
