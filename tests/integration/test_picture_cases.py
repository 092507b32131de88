"""Pictures, folders and records in forms that people have, at the values that are right."""

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kappaface_dist.data.images import decode_image, decode_picture
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.prepare.make_record import make_record
from kappaface_dist.data.sources.catalog import check_trainable, open_catalog
from kappaface_dist.models.embedder import Embedder
from tests.commands import python
from tests.unit.data.loading.loaders import ARGUMENTS, each_loader
from tests.unit.data.made_records import record

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "make_cases.py"


@pytest.fixture(scope="module")
def made(shared_data, tmp_path_factory):
    """The pictures, folders and records of the shared cases."""
    if not CASES.is_file():
        pytest.skip(f"the maker of the cases is absent: {CASES}")
    spec = importlib.util.spec_from_file_location("make_cases", CASES)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    out = tmp_path_factory.mktemp("cases")
    people = maker.photos(shared_data / "orl", 22, 10)
    maker.pictures(out / "pictures", people[0][0])
    maker.folders(out / "folders", people)
    maker.records(out / "records", people)
    return out


FORMS = {
    **dict.fromkeys(("turned.jpg", "cmyk.jpg", "palette.png"), 2),
    **dict.fromkeys(("upright.png", "turned.png", "grey8.png", "grey16.png"), 0),
    **dict.fromkeys(("grey16.tif", "alpha.png", "png_named.jpg"), 0),
}


@pytest.mark.parametrize("name", FORMS)
def test_one_face_in_every_form(made, name):
    oracle = np.asarray(Image.open(made / "pictures" / "upright.png")).astype(int)
    difference = np.abs(decode_picture((made / "pictures" / name).read_bytes()) - oracle).mean()
    assert difference <= FORMS[name]


def an_embedder():
    """Any network sees a picture that is turned as another one; this one is quick."""
    project = np.random.default_rng(0).normal(size=(3 * 112 * 112, 64)).astype(np.float32)
    return Embedder(lambda image: image.reshape(len(image), -1) @ project, 112, 64)


def test_a_cosine_of_one_to_itself(made):
    embedder = an_embedder()
    upright, *others = embedder.embed(
        [made / "pictures" / name for name in ("upright.png", *FORMS)]
    )
    for embedding, name in zip(others, FORMS, strict=True):
        assert embedder.compare(upright, embedding) > 0.999, name


def test_a_turned_picture_embeds_as_the_upright_one():
    image, _ = face()
    embedder = an_embedder()
    payloads = [turned(image.transpose(method), number) for number, method in BACK.items()]
    upright, *others = embedder.embed([turned(image, 1), *payloads])
    assert all(embedder.compare(upright, other) > 0.999 for other in others)


@each_loader
def test_every_loader_gives_the_same_face(made, tmp_path, loader):
    payloads = [(made / "pictures" / name).read_bytes() for name in FORMS]
    path = tmp_path / "train.rec"
    path.write_bytes(b"".join(record(i, payload, i) for i, payload in enumerate(payloads)))
    built = build_loader(
        open_catalog(path),
        **ARGUMENTS[loader],
        batch_size=len(payloads),
        augment="none",
        num_threads=2,
        device=torch.device("cpu"),
    )
    (batch,) = built.batches(0, 1)
    oracle = np.asarray(Image.open(made / "pictures" / "upright.png")).astype(int)
    for image_3HW, label in zip(batch.image_B3HW, batch.label_B.tolist(), strict=True):
        found = (image_3HW.permute(1, 2, 0) * 127.5 + 127.5).round().numpy()
        assert np.abs(found - oracle).mean() <= list(FORMS.values())[label]
    assert built.num_corrupt == 0


@each_loader
def test_the_bomb_and_the_empty_file_are_counted(made, tmp_path, loader):
    names = ("bomb.jpg", "empty.jpg", "upright.png")
    path = tmp_path / "train.rec"
    contents = [record(i, (made / "pictures" / n).read_bytes(), i) for i, n in enumerate(names)]
    path.write_bytes(b"".join(contents))
    settings = {"batch_size": 3, "augment": "none", "num_threads": 1}
    built = build_loader(
        open_catalog(path), **ARGUMENTS[loader], **settings, device=torch.device("cpu")
    )
    (batch,) = built.batches(0, 1)
    assert batch.label_B.tolist() == [2, 2, 2]
    assert built.num_corrupt == 2
    reasons = " ".join(why for _, why in built.corrupt)
    assert "claims 20000 x 20000 pixels, more than 64000000" in reasons


def test_a_folder_as_it_comes(made, tmp_path):
    folder = made / "folders"
    report = make_record(folder, tmp_path / "out", image_size=112)
    assert (report.num_images, len(report.class_names)) == (48, 8)
    catalog = open_catalog(folder)
    assert catalog.count_C.tolist() == report.count_C == [6] * 8
    expected = {
        "loose.jpg": "in no identity's folder",
        "nobody": "a folder without a photo",
        "person 0/gone.jpg": "a link to nothing",
        "person 0/.DS_Store": "hidden",
    }
    for listed in (report.ignored, catalog.left_out.listed):
        assert {str(Path(name).relative_to(folder)): why for name, why in listed} == expected
    done = python("tools/check_record.py", folder)
    assert "verdict: usable; left out: a folder without a photo: 1" in done.stdout


def test_the_plain_record(made):
    catalog = open_catalog(made / "records" / "plain")
    assert catalog.count_C.tolist() == [6] * 10
    assert python("tools/check_record.py", made / "records" / "plain").stdout.endswith("good\n")


@pytest.mark.parametrize("name", ["gaps", "offset", "junk"])
def test_one_command_puts_labels_right(made, tmp_path, name):
    folder = made / "records" / name
    with pytest.raises(ValueError, match=r"tools/convert_record\.py DATA OUT --renumber"):
        open_catalog(folder)
    options = ["--drop-label=-1"] if name == "junk" else []
    out = tmp_path / "train.rec"
    done = python("tools/convert_record.py", folder, out, "--renumber", *options, "--json=-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    before = {"gaps": range(0, 64, 7), "offset": range(1000, 1010), "junk": range(10)}[name]
    assert report["label_of_class"] == list(before)
    assert report["dropped_labels"] == ({"-1": 7} if name == "junk" else {})
    # The seven records without a label are every ninth.
    expected = [k // 6 for k in range(60) if name != "junk" or k % 9]
    catalog = open_catalog(out)
    assert catalog.label_I.tolist() == expected
    plain = open_catalog(made / "records" / "plain")
    kept = [k for k in range(60) if name != "junk" or k % 9]
    assert [catalog.read(i) for i in range(len(kept))] == [plain.read(k) for k in kept]
    assert python("tools/check_record.py", out).stdout.splitlines()[-1].startswith("verdict: good")


def test_one_class(made):
    catalog = open_catalog(made / "records" / "one_class")
    with pytest.raises(ValueError, match="training tells classes apart: give it two at least"):
        check_trainable(catalog, "one_class", 1)
    done = python("tools/check_record.py", made / "records" / "one_class")
    assert done.returncode == 1
    assert "not good: all images are of one class" in done.stdout
    settings = ["run.steps=1", f"data.train={made / 'records' / 'one_class'}"]
    done = python("launch/train.py", "configs/quickstart.yaml", *settings, "--check")
    assert done.returncode != 0
    assert "training tells classes apart" in done.stderr


def test_a_filter_is_kept_to(made):
    catalog = open_catalog(made / "records" / "filtered")
    assert catalog.num_images == 30
    assert catalog.left_out.counts == {"records not in train.idx (delete it to have all)": 30}
    plain = open_catalog(made / "records" / "plain")
    assert [catalog.read(i) for i in range(30)] == [plain.read(2 * i) for i in range(30)]


def turned(image, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0, exif=exif)
    return file.getvalue()


def face():
    """Light eyes and mouth corners on a dark, uneven ground, 160 wide and 200 high."""
    row, column = np.mgrid[:200, :160]
    pixels = np.stack([row // 3, column // 3, (row + column) // 8], axis=2).astype(np.uint8)
    points = [(60, 80), (105, 78), (84, 105), (64, 130), (102, 129)]
    for x, y in points:
        pixels[y - 3 : y + 4, x - 3 : x + 4] = 250
    return Image.fromarray(pixels), points


BACK = {
    3: Image.Transpose.ROTATE_180,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", BACK)
def test_points_are_those_of_the_picture_as_it_is_shown(tmp_path, orientation):
    image, points = face()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "upright.jpg").write_bytes(turned(image, 1))
    stored = image.transpose(BACK[orientation])
    (tmp_path / "photos" / "turned.jpg").write_bytes(turned(stored, orientation))
    numbers = " ".join(f"{x} {y}" for x, y in points)
    (tmp_path / "points.txt").write_text(f"upright.jpg {numbers}\nturned.jpg {numbers}\n")
    landmarks = ["--landmarks", tmp_path / "points.txt"]
    done = python("tools/align_faces.py", tmp_path / "photos", tmp_path / "out", *landmarks)
    assert done.returncode == 0, done.stderr
    aligned = [
        decode_image((tmp_path / "out" / f"{name}.jpg").read_bytes(), 112).astype(int)
        for name in ("upright", "turned")
    ]
    assert np.abs(aligned[0] - aligned[1]).mean() < 2
    assert aligned[0][52, 38].min() > 200  # the left eye, where the field expects it


@each_loader
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_jpegs_in_a_record(tmp_path, loader, orientation):
    image, _ = face()
    payload = turned(image, orientation)
    path = tmp_path / "train.rec"
    path.write_bytes(record(0, payload) + record(1, turned(image, 1)))
    settings = {"batch_size": 2, "image_size": 56, "augment": "none", "num_threads": 1}
    built = build_loader(
        open_catalog(path), **ARGUMENTS[loader], **settings, device=torch.device("cpu")
    )
    (batch,) = built.batches(0, 1)
    found = batch.image_B3HW[batch.label_B.tolist().index(0)].permute(1, 2, 0) * 127.5 + 127.5
    upright = image.transpose(method) if (method := FORTH.get(orientation)) is not None else image
    oracle = np.asarray(upright.resize((56, 56), Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(found.numpy() - oracle).mean() < 4


# What the standard says: where the stored picture's row 0 and column 0 are to be shown.
FORTH = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
