"""Landmarks from a file and from a detector, and align_faces.py with them."""

import json

import numpy as np
import pytest
from PIL import Image

from kappaface_dist.data.align import REFERENCE_52
from kappaface_dist.data.images import decode_picture
from kappaface_dist.data.prepare.landmarks import YuNetDetector, read_landmarks
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


def yunet_model(path, box, points_52, size=64):
    """A file with YuNet's inputs and outputs that finds the same face in every picture."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    nodes, outputs = [], []
    for stride in (8, 16, 32):
        num = (size // stride) ** 2
        values = {
            "cls": np.zeros((1, num, 1), np.float32),
            "obj": np.zeros((1, num, 1), np.float32),
            "bbox": np.zeros((1, num, 4), np.float32),
            "kps": np.zeros((1, num, 10), np.float32),
        }
        if stride == 8:  # the cell in the corner; offsets are counted in strides
            values["cls"][0, 0] = values["obj"][0, 0] = 1.0
            x, y, width, height = np.array(box) / stride
            values["bbox"][0, 0] = [x + width / 2, y + height / 2, np.log(width), np.log(height)]
            values["kps"][0, 0] = (points_52 / stride).ravel()
        for name, value in values.items():
            full = f"{name}_{stride}"
            constant = onnx.numpy_helper.from_array(value, f"{full}_value")
            nodes.append(onnx.helper.make_node("Constant", [], [f"{full}_c"], value=constant))
            # Nothing of the picture but a zero: the graph must depend on its input.
            nodes.append(onnx.helper.make_node("Add", [f"{full}_c", "zero"], [full]))
            shape = onnx.helper.make_tensor_value_info(full, 1, value.shape)
            outputs.append(shape)
    nothing = onnx.numpy_helper.from_array(np.zeros((1, 1, 1), np.float32), "nothing_value")
    first = [
        onnx.helper.make_node("Constant", [], ["nothing"], value=nothing),
        onnx.helper.make_node("ReduceMax", ["input"], ["largest"], axes=[1, 2, 3], keepdims=0),
        onnx.helper.make_node("Mul", ["largest", "nothing"], ["zero"]),
    ]
    picture = onnx.helper.make_tensor_value_info("input", 1, (1, 3, size, size))
    graph = onnx.helper.make_graph([*first, *nodes], "yunet", [picture], outputs)
    opset = [onnx.helper.make_opsetid("", 11)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def test_the_detector_gives_the_points_of_its_model(tmp_path):
    """OpenCV's own detector code runs; only the network is made up."""
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    points_52 = REFERENCE_52 / 2
    model = yunet_model(tmp_path / "yunet.onnx", (4, 8, 40, 48), points_52)
    found = YuNetDetector(model).largest_face(np.zeros((64, 64, 3), dtype=np.uint8))
    np.testing.assert_allclose(found, points_52, atol=1e-3)
