"""Lists of an identification test; TinyFace's as MATLAB files that scipy writes."""

import json

import numpy as np
import pytest
from scipy.io import savemat

from kappaface_dist.evaluation.sets.face_lists import read_faces


def cells(names):
    """A column of strings as MATLAB keeps it."""
    column = np.empty((len(names), 1), dtype=object)
    column[:, 0] = names
    return column


@pytest.mark.parametrize(("kind", "folder"), [("probe", "Probe"), ("gallery", "Gallery_Match")])
def test_tinyface(tmp_path, kind, folder):
    names = ["8_7.jpg", "12_1.jpg", "12_20.jpg"]
    ids = np.array([[8], [12], [12]], dtype=np.uint16)
    path = tmp_path / f"{kind}_img_ID_pairs.mat"
    savemat(path, {f"{kind}_set": cells(names), f"{kind}_ids": ids})
    faces = read_faces(path)
    assert faces.paths == [tmp_path / folder / name for name in names]
    assert faces.names == ["8", "12", "12"]
    assert read_faces(path, "/aligned").paths[0].as_posix() == "/aligned/8_7.jpg"


def test_what_is_no_list_of_tinyface(tmp_path):
    path = tmp_path / "other.mat"
    savemat(path, {"feature": np.zeros(3)})
    with pytest.raises(ValueError, match=r"holds feature, expected probe_set and probe_ids"):
        read_faces(path)
    savemat(path, {"probe_set": cells(["a.jpg"]), "probe_ids": np.array([[1], [2]])})
    with pytest.raises(ValueError, match=r"has 1 images and 2 ids"):
        read_faces(path)
    path.write_bytes(b"no matlab file at all" * 20)
    with pytest.raises(ValueError, match=r"is not a readable \.mat file"):
        read_faces(path)
    with pytest.raises(ValueError, match="there is no file"):
        read_faces(tmp_path / "nothing.mat")


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32, np.float64, object])
def test_one_number_of_any_type_is_one_identity(tmp_path, dtype):
    """A probe list of doubles and a gallery list of integers name the same people."""
    path = tmp_path / "probe_img_ID_pairs.mat"
    ids = np.array([[8], [12], [12]]).astype(dtype)
    savemat(path, {"probe_set": cells(["a.jpg", "b.jpg", "c.jpg"]), "probe_ids": ids})
    assert read_faces(path).names == ["8", "12", "12"]


def test_identities_as_text(tmp_path):
    path = tmp_path / "probe_img_ID_pairs.mat"
    content = {"probe_set": cells(["a.jpg", "b.jpg"]), "probe_ids": cells(["8", "12.0"])}
    savemat(path, content)
    assert read_faces(path).names == ["8", "12"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_numbers_and_marks_in_json(tmp_path, mark):
    path = tmp_path / "list.json"
    content = {"path": list("abcde"), "id": [1, 1.0, "1", "1.5b", "007"]}
    path.write_bytes(mark + json.dumps(content).encode())
    assert read_faces(path).names == ["1", "1", "1", "1.5b", "007"]
    for wrong in (1.5, None, True, "", [1]):
        path.write_text(json.dumps({"path": ["a"], "id": [wrong]}))
        with pytest.raises(ValueError, match=r"gives image 0 .* expected a name or a whole number"):
            read_faces(path)


def test_an_identity_is_its_folder_however_deep_the_image_lies(tmp_path, caplog):
    for name in ("ann/1.jpg", "ann/2020/2.jpg", "bob/2020/3.jpg", "loose.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    faces = read_faces(tmp_path)
    found = {path.name: name for path, name in zip(faces.paths, faces.names, strict=True)}
    assert found == {"1.jpg": "ann", "2.jpg": "ann", "3.jpg": "bob"}
    assert "1 images lie in no identity's folder and are left out, the first is loose.jpg" in (
        caplog.text
    )
    assert "2 images lie deeper" in caplog.text
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "1.jpg").touch()
    with pytest.raises(ValueError, match="has 1 images and no folder of an identity"):
        read_faces(tmp_path / "flat")
