"""Landmarks from a file and from a detector, and align_faces.py with them."""

import json

import numpy as np
import pytest
from PIL import Image

from kappaface_dist.data.align import REFERENCE_52
from kappaface_dist.data.images import decode_picture
from kappaface_dist.data.landmarks import YuNetDetector, read_landmarks
from tests.commands import python


def rotated(points, degrees, scale, shift):
    angle = np.deg2rad(degrees)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ matrix.T + shift


def dots(points, size, radius):
    """A picture with a white dot around each point."""
    y, x = np.mgrid[:size, :size]
    distance = np.min([np.hypot(x - px, y - py) for px, py in points], axis=0)
    return np.repeat(np.where(distance <= radius, 255, 0)[:, :, None], 3, axis=2).astype(np.uint8)


def test_the_landmarks_file(tmp_path):
    path = tmp_path / "a.txt"
    numbers = " ".join(str(i) for i in range(10))
    path.write_text(f"name,x1,y1\n# a comment\na/b.jpg {numbers}\nwith space.png,{numbers}\n\n")
    found = dict(read_landmarks(path))
    assert list(found) == ["a/b.jpg", "with space.png"]
    assert found["a/b.jpg"].tolist() == np.arange(10).reshape(5, 2).tolist()
    path.write_text(f"a.jpg {numbers}\nb.jpg 1 2 3\n")
    with pytest.raises(ValueError, match=r"a\.txt line 2 is 'b\.jpg 1 2 3'"):
        list(read_landmarks(path))


def test_the_tool(tmp_path):
    points = rotated(REFERENCE_52, 20, 1.5, [80.0, 10.0])
    (tmp_path / "photos" / "ann").mkdir(parents=True)
    Image.fromarray(dots(points, 300, 6)).save(tmp_path / "photos" / "ann" / "1.png")
    (tmp_path / "photos" / "ann" / "2.jpg").write_bytes(b"rubbish")
    numbers = " ".join(f"{value:.4f}" for value in points.ravel())
    (tmp_path / "l.txt").write_text(f"ann/1.png {numbers}\nann/2.jpg {numbers}\n")
    done = python(
        "tools/align_faces.py", tmp_path / "photos", tmp_path / "out",
        "--landmarks", tmp_path / "l.txt", "--json=-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["num_aligned"] == 1
    assert [item["photo"] for item in report["left_out"]] == ["ann/2.jpg"]
    aligned = decode_picture((tmp_path / "out" / "ann" / "1.jpg").read_bytes())
    assert aligned.shape == (112, 112, 3)
    for x, y in REFERENCE_52.round().astype(int):
        assert aligned[y, x].min() > 200


def test_a_missing_detector_model(tmp_path):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    with pytest.raises(ValueError, match="there is no detector model"):
        YuNetDetector(tmp_path / "absent.onnx")
    (tmp_path / "wrong.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a YuNet model"):
        YuNetDetector(tmp_path / "wrong.onnx")
