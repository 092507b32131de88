"""show_batch.py: rows with their labels, and the images as they are."""

import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from kappaface_dist.data.images import decode_image
from kappaface_dist.data.sources.catalog import open_catalog
from tests.commands import ROOT
from tests.unit.data.made_records import write_records


@pytest.mark.parametrize("augment", ["none", "flip", "strong"])
def test_rows_have_labels(augment, monkeypatch, tmp_path):
    path = write_records(tmp_path / "a.rec", [0, 1, 0, 1], 32)
    arguments = ["--image-size=32", "--columns=4", "--rows=1", f"--augment={augment}"]
    monkeypatch.setattr(sys, "argv", ["show", str(path), str(tmp_path / "sheet.png"), *arguments])
    runpy.run_path(str(ROOT / "tools" / "show_batch.py"), run_name="__main__")
    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    width = 4 * 34 - 2
    labels, images = sheet[:, :-width], sheet[:, -width:]
    assert sheet.shape[0] == 2 * 32 + 2
    for rows in (labels[:32], labels[34:]):
        assert (rows < 128).any()
        assert (rows[:, :2] == 255).all()
        assert (rows[:, -2:] == 255).all()  # the text ends before the images
    assert (labels[:32] != labels[34:]).any()
    catalog = open_catalog(path)
    known = {decode_image(catalog.read(i), 32).tobytes() for i in range(4)}
    shown = {images[:32, 34 * i : 34 * i + 32].tobytes() for i in range(4)}
    assert shown == known
    if augment == "none":
        assert (images[:32] == images[34:]).all()
