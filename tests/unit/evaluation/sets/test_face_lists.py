"""Lists of an identification test; TinyFace's as MATLAB files that scipy writes."""

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
