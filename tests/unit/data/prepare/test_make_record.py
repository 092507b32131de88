"""tools/make_record.py on real and made-up folders."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from kappaface_dist.data.images import decode_image
from kappaface_dist.data.prepare.make_record import make_record
from kappaface_dist.data.sources.catalog import open_catalog
from tests.unit.data.made_records import jpeg

ROOT = Path(__file__).resolve().parents[4]


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
    (ignored,) = report["ignored"]
    assert Path(ignored["file"]).name == "readme.txt"
    assert ignored["reason"] == "not an image by its name"
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


def many_photos(root, num_identities=6, num_images=5):
    for identity in range(num_identities):
        (root / f"p{identity}").mkdir(parents=True)
        for i in range(num_images):
            content = jpeg(100 * identity + i, 64) if identity != 3 else b"rubbish"
            (root / f"p{identity}" / f"{i}.jpg").write_bytes(content)
    return root


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_processes_and_shards_give_the_same_images(tmp_path, monkeypatch):
    root = many_photos(tmp_path / "photos")
    make_record(root, tmp_path / "whole", image_size=32)
    # 4 files a part: identities are cut by the parts' ends, one part has no readable file.
    monkeypatch.setattr("kappaface_dist.data.prepare.make_record.PART_FILES", 4)
    report = make_record(root, tmp_path / "parts", image_size=32, processes=2)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert report.class_names == ["p0", "p1", "p2", "p4", "p5"]
    assert len(report.unreadable) == 5
    sharded = make_record(root, tmp_path / "shards", image_size=32, shards=3)
    assert [path.name for path in sharded.records] == [
        f"train-0000{i}-of-00003.rec" for i in range(3)
    ]
    whole, shards = open_catalog(tmp_path / "whole"), open_catalog(tmp_path / "shards")
    assert (
        whole.label_I.tolist() == shards.label_I.tolist() == [i for i in range(5) for _ in range(5)]
    )
    assert [whole.read(i) for i in range(25)] == [shards.read(i) for i in range(25)]


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    root = many_photos(tmp_path / "photos")
    make_record(root, tmp_path / "whole", image_size=32)
    monkeypatch.setattr("kappaface_dist.data.prepare.make_record.PART_FILES", 4)

    def stop(done, total):
        assert total == 30
        if done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_record(root, tmp_path / "out", image_size=32, progress=stop)
    assert not (tmp_path / "out" / "train.rec").exists()
    # One photo of the first part changed meanwhile: that part is made again.
    (root / "p0" / "0.jpg").write_bytes(jpeg(999, 64))
    report = make_record(root, tmp_path / "out", image_size=32)
    assert report.num_resumed == 8
    expected, found = open_catalog(tmp_path / "whole"), open_catalog(tmp_path / "out")
    assert found.label_I.tolist() == expected.label_I.tolist()
    assert [found.read(i) for i in range(1, 25)] == [expected.read(i) for i in range(1, 25)]
    assert found.read(0) != expected.read(0)
    assert not (tmp_path / "out" / "parts.partial").exists()


def turned(seed, size, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    file = io.BytesIO()
    with Image.open(io.BytesIO(jpeg(seed, size))) as image:
        image.save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def test_what_exif_turns_is_written_upright(tmp_path):
    (tmp_path / "photos" / "a").mkdir(parents=True)
    originals = [turned(1, 112, 6), turned(2, 112, 1), turned(3, 224, 8)]
    for i, payload in enumerate(originals):
        (tmp_path / "photos" / "a" / f"{i}.jpg").write_bytes(payload)
    make_record(tmp_path / "photos", tmp_path / "out", image_size=112)
    catalog = open_catalog(tmp_path / "out" / "train.rec")
    assert catalog.read(1) == originals[1]  # upright: as it was
    for i, payload in enumerate(originals):
        # Pillow without a look at EXIF, as MXNet reads a record.
        found = np.asarray(Image.open(io.BytesIO(catalog.read(i))).convert("RGB"))
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(payload))).convert("RGB")
        oracle = np.asarray(upright.resize((112, 112), Image.Resampling.BILINEAR))
        assert np.abs(found.astype(int) - oracle).mean() < 3


def test_photos_at_any_depth_and_what_is_left_out(tmp_path):
    for name in ("a/1.jpg", "a/2020/may/2.jpg", "b/x/1.jfif", "loose.jpg", "b/x/1.heic"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(jpeg(len(name)))
    (tmp_path / "photos" / "nobody").mkdir()
    (tmp_path / "photos" / "a" / "gone.jpg").symlink_to("nowhere")
    done = run_tool(tmp_path / "photos", tmp_path / "out", "--processes", "1")
    assert done.returncode == 0, done.stderr
    assert (
        "3 images of 2 identities; left out: 0 unreadable, a folder without a photo: 1"
        in done.stdout
    )
    for name in ("loose.jpg", "1.heic", "nobody", "gone.jpg"):
        assert f"{name}: " in done.stderr
    assert open_catalog(tmp_path / "out").label_I.tolist() == [0, 0, 1]
