"""Where the five points of faces are: from a file, or from a detector.

Shapes: H W image size; five points of x, y in pixels, as in align.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def read_landmarks(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(photo, points [5, 2]) of each line of "photo x1 y1 ... x5 y5".

    Columns are separated by spaces, tabs or commas; the name may hold spaces; # begins a comment.

    Raises:
        ValueError: a line has not a name and ten numbers.
    """
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            fields = text.replace(",", " ").split()
            try:
                values = np.array([float(field) for field in fields[-10:]])
            except ValueError:
                values = np.empty(0)
            if len(fields) < 11 or len(values) != 10:
                if number == 1:  # a heading
                    continue
                raise ValueError(
                    f"{path} line {number} is {text[:60]!r}: expected a photo's path and ten"
                    " numbers, x and y of eye, eye, nose and both corners of the mouth"
                )
            yield " ".join(fields[:-10]), values.reshape(5, 2)


class YuNetDetector:
    """OpenCV's face detector with a YuNet model file (.onnx) from its model zoo.

    Raises:
        RuntimeError: OpenCV is not installed.
        ValueError: there is no such file, or OpenCV cannot load it.
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
        try:
            self._detector: Any = cv2.FaceDetectorYN.create(str(model), "", (320, 320), min_score)
        except cv2.error as error:
            raise ValueError(f"{model} is not a YuNet model that OpenCV can load") from error

    def largest_face(self, pixels_HW3: np.ndarray) -> np.ndarray | None:
        """The points [5, 2] of the largest face; None if there is no face."""
        height, width, _ = pixels_HW3.shape
        self._detector.setInputSize((width, height))
        _, faces = self._detector.detect(np.ascontiguousarray(pixels_HW3[:, :, ::-1]))
        if faces is None:
            return None
        # Each row: box (x, y, width, height), five landmarks, score.
        largest = max(faces, key=lambda face: face[2] * face[3])
        return largest[4:14].reshape(5, 2).astype(np.float64)
