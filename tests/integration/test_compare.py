"""compare.py and the embedder's ways to be asked: one person or not?"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from kappaface_dist.data.align import align_face
from kappaface_dist.models.embedder import load_embedder
from kappaface_dist.models.export import save_backbone
from kappaface_dist.models.metadata import learnt_facts
from tests.commands import exit_line, python
from tests.unit.backbones.calibrated import calibrated_backbone

POINTS = np.array([[30, 40], [60, 42], [45, 60], [33, 75], [58, 76]], dtype=float)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model with a threshold, four photos, and two folders."""
    folder = tmp_path_factory.mktemp("compare")
    model = calibrated_backbone("tiny", 16, 32)
    facts = learnt_facts(
        images=1, identities=1, verification={"lfw": {"threshold_at_far": {"1e-2": 0.9}}}
    )
    save_backbone(
        folder / "x.safetensors", model, name="tiny", embedding_size=16, image_size=32, facts=facts
    )
    generator = np.random.default_rng(0)
    people = generator.integers(0, 256, (2, 8, 8, 3))
    for person in range(2):
        (folder / f"person{person}").mkdir()
        for number in range(2):
            noisy = people[person].repeat(12, axis=0).repeat(12, axis=1)
            noisy = np.clip(noisy + generator.normal(0, 4, noisy.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"person{person}" / f"{number}.png")
    (folder / "person1" / "bad.jpg").write_bytes(b"broken")
    return folder, model


def embedding(model, pixels_HW3):
    image = Image.fromarray(pixels_HW3).resize((32, 32), Image.Resampling.BILINEAR)
    image_13HW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        sum_D = (model(image_13HW) + model(image_13HW.flip(3)))[0].double().numpy()
    return sum_D / np.linalg.norm(sum_D)


def test_photos_and_folders(place):
    folder, model = place
    first, second = (folder / "person0" / f"{n}.png" for n in (0, 1))
    ended = python(
        "tools/compare.py", folder / "x.safetensors", first, second, folder / "person1",
        "--json", "-",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    rows = [embedding(model, np.array(Image.open(path))) for path in (first, second)]
    both = sum(
        embedding(model, np.array(Image.open(folder / "person1" / f"{n}.png"))) for n in (0, 1)
    )
    rows.append(both / np.linalg.norm(both))
    expected = [rows[a] @ rows[b] for a, b in ((0, 1), (0, 2), (1, 2))]
    assert [pair["cosine"] for pair in report["pairs"]] == pytest.approx(expected, abs=1e-5)
    assert [pair["same"] for pair in report["pairs"]] == [cosine >= 0.9 for cosine in expected]
    assert report["pairs"][0]["same"]
    assert not report["pairs"][1]["same"]
    assert (report["threshold"], report["far"]) == (0.9, 1e-2)  # there is none for 1e-3
    assert [each["image"] for each in report["left_out"]] == [str(folder / "person1" / "bad.jpg")]


def test_photos_are_aligned_by_the_same_code(place, tmp_path):
    folder, model = place
    paths = [folder / "person0" / "0.png", folder / "person1" / "0.png"]
    numbers = " ".join(map(str, POINTS.ravel()))
    (tmp_path / "points.txt").write_text("".join(f"{path} {numbers}\n" for path in paths))
    ended = python(
        "tools/compare.py", folder / "x.safetensors", *paths, "--threshold=0.5", "--json=-",
        "--landmarks", tmp_path / "points.txt",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    rows = [embedding(model, align_face(np.array(Image.open(p)), POINTS, 32)) for p in paths]
    (pair,) = json.loads(ended.stdout)["pairs"]
    assert pair["cosine"] == pytest.approx(rows[0] @ rows[1], abs=1e-5)


def test_mistakes_are_one_sentence(place, tmp_path):
    folder, _ = place
    model, photo = folder / "x.safetensors", folder / "person0" / "0.png"
    tool = "tools/compare.py"
    assert "one photo is named" in exit_line(tool, model, photo)
    assert "there is no" in exit_line(tool, model, photo, tmp_path / "none.jpg")
    message = exit_line(tool, model, photo, photo, "--far=1e-4")
    assert "no threshold for FAR 0.0001, the model has lfw: 1e-2: evaluate it on a set" in message
    assert "at least 10000 different pairs" in message
    bad = folder / "person1" / "bad.jpg"
    assert f"{bad}: not a readable image" in exit_line(tool, model, photo, bad, "--far=1e-2")
    (tmp_path / "empty").mkdir()
    assert "empty" in exit_line(tool, model, photo, tmp_path / "empty", "--far=1e-2")
    assert "--far is 3.0" in exit_line(tool, model, photo, photo, "--far=3")


def test_one_picture_or_many(place):
    folder, model = place
    embedder = load_embedder(folder / "x.safetensors")
    path = folder / "person0" / "0.png"
    image = Image.open(path)
    pixels_HW3 = np.array(image)
    expected_D = embedding(model, pixels_HW3)
    for one in (path, str(path), path.read_bytes(), image, image.convert("RGBA"), pixels_HW3):
        found_D = embedder.embed(one)
        assert found_D.shape == (16,)
        np.testing.assert_allclose(found_D, expected_D, atol=1e-5)
        np.testing.assert_allclose(embedder.embed([one, path])[0], found_D, atol=1e-6)
    assert embedder.embed(np.stack([pixels_HW3] * 3)).shape == (3, 16)
    assert embedder.embed((path,)).shape == (1, 16)
