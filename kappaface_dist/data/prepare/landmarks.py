"""Where the five points of faces are: from a file, or from a detector.

Shapes: H W image size; five points of x, y in pixels, as in align.py.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.text_files import read_lines

# A photo, and ten numbers after it; the lazy name may hold spaces, commas and numbers.
NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
LINE = re.compile(rf"(.*?\S)((?:[\s,]+{NUMBER}){{10}})[\s,]*")

# The longest side at which faces are searched, in pixels; the next only where none was found. At
# the size of a camera's photo a large face is missed, and an eye taken for one.
SEARCH_SIZES = (640, 1280, 2560)
CHOICES = ("largest", "central", "best")
# What a YuNet model of OpenCV's zoo gives, since March 2023.
OUTPUTS = tuple(
    f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)
)


@dataclass(frozen=True)
class Face:
    """A face in a photo, all in pixels of the photo.

    Attributes:
        box: left, top, width, height.
        score: of the detector, 0 to 1.
    """

    box: tuple[float, float, float, float]
    points_52: np.ndarray
    score: float

    @property
    def area(self) -> float:
        return self.box[2] * self.box[3]


def read_landmarks(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(photo, points [5, 2]) of each line of "photo x1 y1 ... x5 y5".

    Columns are separated by spaces, tabs or commas; the name may hold any of them; # begins a
    comment.

    Raises:
        ValueError: a line has not a name and ten numbers.
    """
    for number, line in enumerate(read_lines(path), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = LINE.fullmatch(text)
        if found:
            values = [float(field) for field in found[2].replace(",", " ").split()]
            yield found[1].rstrip(", \t"), np.array(values).reshape(5, 2)
        elif number > 1:  # the first may be a heading
            raise ValueError(
                f"{path} line {number} is {text[:60]!r}: expected a photo's path and ten"
                " numbers, x and y of eye, eye, nose and both corners of the mouth"
            )


def choose(faces: Sequence[Face], how: str, width: int, height: int) -> Face:
    """The face that a photo of width x height is of.

    largest: by the area of the box, for which the score counts as much. central: nearest to the
    middle, in units of its own size, so that an eye taken for a face does not win over the face
    that it is in. best: by the score.
    """

    def offset(face: Face) -> float:
        x, y = face.box[0] + face.box[2] / 2, face.box[1] + face.box[3] / 2
        return float(np.hypot(x - width / 2, y - height / 2) / np.sqrt(face.area))

    assert how in CHOICES, how
    if how == "central":
        return min(faces, key=lambda face: (offset(face) + 0.05) / face.score)
    if how == "best":
        return max(faces, key=lambda face: face.score)
    return max(faces, key=lambda face: face.area * face.score)


class YuNetDetector:
    """OpenCV's face detector with a YuNet model file (.onnx) from its model zoo.

    Raises:
        RuntimeError: OpenCV is not installed.
        ValueError: there is no such file, or it is another kind of model.
    """

    def __init__(self, model: Path, min_score: float = 0.6):
        try:
            import cv2
        except ImportError as error:
            raise RuntimeError(
                "a detector needs OpenCV: pip install 'kappaface_dist[align]'"
            ) from error
        if not model.is_file():
            raise ValueError(f"there is no detector model {model}: give the path of a YuNet .onnx")
        # OpenCV looks for the outputs by name, and ends the process where another model lacks one.
        content = model.read_bytes()
        missing = [name for name in OUTPUTS if name.encode() not in content]
        if missing:
            raise ValueError(
                f"{model} is not a YuNet model: it has no output {missing[0]} (SCRFD and others are"
                " not read): take face_detection_yunet_2023mar.onnx or a later one from"
                " OpenCV's model zoo, or give the points of another detector with --landmarks"
            )
        self._cv2: Any = cv2
        self._model = model
        # OpenCV 5 warns that its choice of a device does not count, which is no one's concern.
        log = cv2.utils.logging
        level = log.setLogLevel(log.LOG_LEVEL_ERROR)
        try:
            self._detector: Any = cv2.FaceDetectorYN.create(str(model), "", (320, 320), min_score)
        except cv2.error as error:
            raise ValueError(f"{model} is not a YuNet model that OpenCV can load") from error
        finally:
            log.setLogLevel(level)

    def largest_face(self, pixels_HW3: np.ndarray) -> np.ndarray | None:
        """The points [5, 2] of the largest face; None if there is no face."""
        height, width, _ = pixels_HW3.shape
        faces = self.faces(pixels_HW3)
        return choose(faces, "largest", width, height).points_52 if faces else None

    def faces(self, pixels_HW3: np.ndarray) -> list[Face]:
        """All faces of a photo, at the smallest of SEARCH_SIZES at which there is one.

        Raises:
            ValueError: OpenCV cannot run the model.
        """
        longest = max(pixels_HW3.shape[:2])
        for size in SEARCH_SIZES:
            found = self._faces_at(pixels_HW3, min(1.0, size / longest))
            if found or size >= longest:
                return found
        return []

    def _faces_at(self, pixels_HW3: np.ndarray, scale: float) -> list[Face]:
        height, width, _ = pixels_HW3.shape
        size = max(1, round(width * scale)), max(1, round(height * scale))
        searched = pixels_HW3
        if size != (width, height):
            area = self._cv2.INTER_AREA
            searched = self._cv2.resize(np.ascontiguousarray(searched), size, interpolation=area)
        try:
            self._detector.setInputSize(size)
            _, rows = self._detector.detect(np.ascontiguousarray(searched[:, :, ::-1]))
        except self._cv2.error as error:
            raise ValueError(f"OpenCV cannot run {self._model} ({error.err})") from error
        stretch = np.array([width / size[0], height / size[1]])
        return [
            _face(row.astype(np.float64), stretch) for row in (rows if rows is not None else ())
        ]


def _face(row: np.ndarray, stretch: np.ndarray) -> Face:
    """A row of the detector: box (x, y, width, height), five points, score."""
    left, top, width, height = (row[:4].reshape(2, 2) * stretch).ravel().tolist()
    # The centre of the first pixel is 0, 0 at both sizes.
    points_52 = (row[4:14].reshape(5, 2) + 0.5) * stretch - 0.5
    return Face((left, top, width, height), points_52, float(row[14]))
