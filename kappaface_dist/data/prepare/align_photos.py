"""Aligned faces out of a folder of photos.

Shapes: H W image size; five points of x, y in pixels, as in align.py.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from kappaface_dist.data.align import REFERENCE_52, align_face, similarity
from kappaface_dist.data.images import decode_picture, encode_jpeg
from kappaface_dist.data.prepare.landmarks import YuNetDetector, choose, read_landmarks
from kappaface_dist.data.sources.base import NO_PHOTO, list_content

FALLBACKS = ("skip", "centre")
# What makes a crop doubtful. Scores of YuNet on clear faces are above 0.8.
LOW_SCORE = 0.8
# Another face of at least this share of the area could be the one that is meant.
RIVAL_AREA = 0.25
# How far the points lie from the reference after the best fit, in the distance of the eyes.
POOR_FIT = 0.25
# Eyes closer than this were magnified by more than two.
SMALL_EYES = 17.0


@dataclass(frozen=True)
class Located:
    """The face of a photo: its points, the detector's score, and what speaks against it."""

    points_52: np.ndarray
    score: float | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Aligned:
    """A crop that was written. Without a face (`found` is False) it is the photo's middle."""

    name: str
    target: Path
    found: bool
    score: float | None
    doubts: tuple[str, ...]

    @property
    def doubtfulness(self) -> tuple[int, float]:
        """Sorts the doubtful ones first."""
        score = 1.0 if self.score is None else self.score
        return (0 if not self.found else 1 if self.doubts else 2), score


Locate = Callable[[np.ndarray], Located | None]


@dataclass(frozen=True)
class Photos:
    """The photos to align, how to find the face in each, and what else lies in the folder."""

    located: dict[str, Locate]
    left_out: list[tuple[str, str]]


def listed_photos(photos: Path, landmarks: Path) -> Photos:
    """The photos of a file of landmarks; those of the folder that it does not list are named."""
    located: dict[str, Locate] = {}
    left_out = []
    for name, points_52 in read_landmarks(landmarks):
        relative = _below(photos, name)
        if relative is None:
            left_out.append((name, f"it does not lie in {photos}"))
        elif relative in located:
            left_out.append((name, f"{landmarks} lists it twice: the first points were taken"))
        else:
            located[relative] = partial(_known, points_52)
    for name in _image_names(photos)[0]:
        if name not in located:
            left_out.append((name, f"{landmarks} has no points for it"))
    return Photos(located, left_out)


def _known(points_52: np.ndarray, pixels_HW3: np.ndarray) -> Located:
    return Located(points_52, doubts=_point_doubts(points_52))


def detected_photos(photos: Path, model: Path, how: str) -> Photos:
    """All photos below a folder; the face of each is found by a YuNet model.

    Args:
        how: which of several faces, one of landmarks.CHOICES.
    """
    locate = partial(_detected, YuNetDetector(model), how)
    names, others = _image_names(photos)
    return Photos(dict.fromkeys(names, locate), others)


def _detected(detector: YuNetDetector, how: str, pixels_HW3: np.ndarray) -> Located | None:
    height, width, _ = pixels_HW3.shape
    faces = detector.faces(pixels_HW3)
    if not faces:
        return None
    face = choose(faces, how, width, height)
    doubts = [f"score {face.score:.2f}"] if face.score < LOW_SCORE else []
    rivals = sum(other.area >= RIVAL_AREA * face.area for other in faces)
    if rivals > 1:
        doubts.append(f"{rivals} faces")
    return Located(face.points_52, face.score, (*doubts, *_point_doubts(face.points_52)))


def _point_doubts(points_52: np.ndarray) -> tuple[str, ...]:
    eyes = float(np.linalg.norm(points_52[1] - points_52[0]))
    try:
        matrix_23 = similarity(points_52, REFERENCE_52)
    except ValueError:
        return ()  # no crop will come of it: align_face() says why
    placed_52 = points_52 @ matrix_23[:, :2].T + matrix_23[:, 2]
    reference_eyes = np.linalg.norm(REFERENCE_52[1] - REFERENCE_52[0])
    misfit = float(np.abs(placed_52 - REFERENCE_52).max() / reference_eyes)
    doubts = [f"points off by {misfit:.2f}"] if misfit > POOR_FIT else []
    if eyes < SMALL_EYES:
        doubts.append(f"eyes {eyes:.0f} px apart")
    return tuple(doubts)


def align_photos(
    photos: Path,
    out: Path,
    found: Photos,
    *,
    image_size: int,
    fallback: str,
    progress: Callable[[list[str]], Iterable[str]] = lambda names: names,
) -> tuple[list[Aligned], list[tuple[str, str]]]:
    """Write the aligned face of each photo into out, as JPEG under the photo's name.

    Args:
        fallback: where no face is found: skip the photo, or take its middle.
        progress: wraps the names of the photos (a progress bar).

    Returns:
        what was written, and (photo, why) of what was not.

    Raises:
        ValueError: out is the folder of the photos, or inside it.
    """
    assert fallback in FALLBACKS, fallback
    if out.resolve().is_relative_to(photos.resolve()):
        raise ValueError(
            f"{out} is {photos} or inside it, where results would be taken for photos: name another"
            " folder"
        )
    aligned, left_out = [], list(found.left_out)
    targets: set[Path] = set()
    for name in progress(list(found.located)):
        target = (out / name).with_suffix(".jpg")
        if target in targets:  # a.png beside a.jpg
            target = out / f"{name}.jpg"
        targets.add(target)
        try:
            aligned.append(_align(photos, name, target, found.located[name], image_size, fallback))
        except (ValueError, OSError) as error:
            left_out.append((name, str(error)))
    return aligned, left_out


def _align(
    photos: Path, name: str, target: Path, locate: Locate, image_size: int, fallback: str
) -> Aligned:
    payload = (photos / name).read_bytes()
    pixels_HW3 = decode_picture(payload)
    located = locate(pixels_HW3)
    if located is not None:
        try:
            crop_HW3 = align_face(pixels_HW3, located.points_52, image_size)
        except ValueError:
            if fallback == "skip":
                raise
            located = None
    elif fallback == "skip":
        raise ValueError("no face was found")
    if located is None:
        crop_HW3 = _middle(pixels_HW3, image_size)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(encode_jpeg(crop_HW3))
    if located is None:
        return Aligned(name, target, False, None, ("no face was found",))
    return Aligned(name, target, True, located.score, located.doubts)


def _middle(pixels_HW3: np.ndarray, image_size: int) -> np.ndarray:
    """The largest square in the middle of a photo, shrunk or magnified."""
    height, width, _ = pixels_HW3.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels_HW3[top : top + side, left : left + side]
    resized = Image.fromarray(square).resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _image_names(photos: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The images below a folder by their names, and what else lies there with the reason."""
    images, others, folders = list_content(photos)
    with_photo = {str(parent) for name in images for parent in Path(name).parents}
    others += [(name, NO_PHOTO) for name in folders if name not in with_photo]
    return sorted(images), sorted(others)


def _below(photos: Path, name: str) -> str | None:
    """A listed photo's name relative to the folder; None for one outside it."""
    try:
        relative = Path(name).relative_to(photos) if Path(name).is_absolute() else Path(name)
    except ValueError:
        return None
    return None if ".." in relative.parts else str(relative)
