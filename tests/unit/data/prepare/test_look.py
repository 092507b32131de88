"""A quick look at a dataset."""

import numpy as np
import pytest

from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.data.prepare.look import odd_sizes
from kappaface_dist.data.sources.catalog import open_catalog


@pytest.fixture
def photos(tmp_path):
    """Writes pictures of these (width, height), one a person; None is no picture."""

    def _write(*sizes):
        for number, size in enumerate(sizes):
            (tmp_path / f"p{number}").mkdir()
            content = b"\xff\xd8 not a picture"
            if size:
                content = encode_jpeg(np.zeros((size[1], size[0], 3), np.uint8))
            (tmp_path / f"p{number}" / "0.jpg").write_bytes(content)
        return open_catalog(tmp_path)

    return _write


def test_aligned_faces_are_fine(photos):
    assert odd_sizes(photos((112, 112), (56, 56), (160, 160))) == ""


def test_photos_are_to_be_cut_out_first(photos):
    said = odd_sizes(photos((112, 112), (640, 480), (250, 250)))
    assert said.startswith("2 of 3 pictures looked at do not look like aligned faces")
    assert "(one is 250x250)" in said
    assert "kappaface align-faces" in said


def test_what_cannot_be_read_is_counted(photos):
    said = odd_sizes(photos(None, (112, 112)))
    assert said == "1 of 2 cannot be read: kappaface check-record names them all"
