"""tools/make_record.py on real and made-up folders."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kappaface_dist.data.catalog import open_catalog
from kappaface_dist.data.images import decode_image
from kappaface_dist.data.make_record import make_record
from tests.unit.data.made_records import jpeg

ROOT = Path(__file__).resolve().parents[3]


def run_tool(*args):
    command = [sys.executable, str(ROOT / "tools" / "make_record.py"), *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False
    )


def photos(root):
    for name in ("b", "a", "broken"):
        (root / name).mkdir(parents=True)
    (root / "a" / "1.jpg").write_bytes(jpeg(1))
    (root / "a" / "large.JPG").write_bytes(jpeg(2, 224))
    (root / "b" / "grey.pgm").write_bytes(b"P5 112 112 255\n" + bytes(range(112)) * 112)
    (root / "b" / "cut.jpg").write_bytes(jpeg(3)[:300])
    (root / "b" / "readme.txt").write_text("not an image")
    (root / "broken" / "1.png").write_bytes(b"not a png")
    return root


def test_the_tool_end_to_end(tmp_path):
    out = tmp_path / "out"
    done = run_tool(photos(tmp_path / "photos"), out, "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    # The folder without a readable image gets no class.
    assert report["classes"] == [{"name": "a", "images": 2}, {"name": "b", "images": 1}]
    assert report["num_images"] == 3
    unreadable = {Path(item["file"]).name for item in report["unreadable"]}
    assert unreadable == {"cut.jpg", "1.png"}
    assert [Path(name).name for name in report["ignored"]] == ["readme.txt"]
    for name in ("cut.jpg", "1.png", "readme.txt"):
        assert f"{name}: " in done.stderr
    assert (out / "property").read_text() == "2,112,112\n"
    catalog = open_catalog(out)
    assert catalog.label_I.tolist() == [0, 0, 1]
    assert catalog.read(0) == jpeg(1)  # as it was: no second loss
    resized = decode_image(jpeg(2, 224), 112)
    assert np.abs(decode_image(catalog.read(1), 112).astype(int) - resized).mean() < 2
    grey = np.asarray(Image.open(tmp_path / "photos" / "b" / "grey.pgm").convert("RGB"))
    assert np.abs(decode_image(catalog.read(2), 112).astype(int) - grey).mean() < 2


def test_errors_of_the_tool_are_one_line(tmp_path):
    done = run_tool(tmp_path / "absent", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no folder ")
    assert done.stderr.count("\n") == 1
    assert "identity" in run_tool("--help").stdout


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no sub-folder"),
        ({"a/1.jpg": b"x"}, "none of the 1 images"),
        ({"1.jpg": b"x"}, "no sub"),
    ],
)
def test_folders_without_images(tmp_path, files, message):
    (tmp_path / "photos").mkdir()
    for name, content in files.items():
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make_record(tmp_path / "photos", tmp_path / "out", image_size=112)
    assert not list(tmp_path.glob("out/*"))


def test_orl(shared_data, tmp_path):
    report = make_record(shared_data / "orl", tmp_path, image_size=112)
    assert report.count_C == [10] * 40
    catalog = open_catalog(tmp_path / "train.rec")
    assert catalog.num_classes == 40
    index = report.class_names.index("s7") * 10
    names = sorted(path.name for path in (shared_data / "orl" / "s7").glob("*.pgm"))
    with Image.open(shared_data / "orl" / "s7" / names[0]) as photo:
        oracle = np.asarray(photo.convert("RGB").resize((112, 112), Image.Resampling.BILINEAR))
    found = decode_image(catalog.read(index), 112)
    assert np.abs(found.astype(int) - oracle).mean() < 2
