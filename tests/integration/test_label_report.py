"""tools/label_report.py and convert_record.py --clean, on people whom any network tells apart."""

import json
import runpy
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from kappaface_dist.backbones import build_backbone
from kappaface_dist.backbones.layers import BATCH_NORMS
from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.recordio import RecordWriter
from kappaface_dist.models.export import save_backbone
from tests.commands import ROOT, exit_line

PEOPLE, PHOTOS = 30, 8


def call(tool, *arguments):
    command = [tool, *map(str, arguments)]
    with mock.patch("sys.argv", command):
        runpy.run_path(str(ROOT / tool), run_name="__main__")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A record in which 8 photos have another's label, and one person has two classes; a model."""
    folder = tmp_path_factory.mktemp("labels")
    rng = np.random.default_rng(0)
    pattern = rng.integers(0, 256, (PEOPLE, 4, 4, 3))
    pattern[:, :, 2:] = pattern[:, :, 1::-1]  # as their mirror image, which is embedded with it
    person = np.repeat(np.arange(PEOPLE), PHOTOS)
    label = person.copy()
    wrong = np.arange(3, 8 * 20, 20)
    label[wrong] = (label[wrong] + 7) % PEOPLE
    halved = (person == 25) & (np.arange(len(person)) % 2 == 0)
    label[halved] = PEOPLE
    noise = rng.normal(0, 25, (len(person), 32, 32, 3))
    pixels = np.kron(pattern[person], np.ones((8, 8, 1))) + noise
    pixels = pixels.clip(0, 255).astype(np.uint8)
    with RecordWriter(folder / "train") as writer:
        for one, its_label in zip(pixels, label, strict=True):
            writer.write(int(its_label), encode_jpeg(one))
    torch.manual_seed(0)
    network = build_backbone("tiny", embedding_size=64, image_size=32)
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    for module in network.modules():
        if isinstance(module, BATCH_NORMS):
            module.momentum = 1.0
    with torch.no_grad():
        network(image)  # its statistics: embeddings lie about 0, not on one side
    model = folder / "model.safetensors"
    save_backbone(model, network, name="tiny", embedding_size=64, image_size=32)
    return folder / "train.rec", model, set(wrong.tolist()), (person, label)


def test_planted_faults_are_listed_shown_and_cleaned(data, tmp_path, capsys):
    record, model, wrong, (person, _) = data
    out = tmp_path / "labels"
    call("tools/label_report.py", model, "--data", record, "--out", out)
    report = json.loads((out / "labels.json").read_text())
    assert {line["image"] for line in report["wrong_images"]} == wrong
    assert [line["classes"] for line in report["one_person"]] == [[25, PEOPLE]]
    assert report["two_people"] == []
    assert min(line["probability"] for line in report["wrong_images"]) > 0.9
    for line in report["wrong_images"]:
        assert line["nearest_class"] == str(person[line["image"]])
        assert line["nearest_cosine"] > line["cosine"]
    text = capsys.readouterr().out
    assert "of 240 images 8 sit probably in another class; of 31 classes 0 are" in text
    assert "1 pairs of classes are probably one person" in text
    sheet = Image.open(out / "sheet.png")
    # Eight photos at two a row, and a row for the pair of classes.
    assert sheet.size == (1360, 5 * 142)

    call("tools/convert_record.py", record, tmp_path / "clean.rec", "--clean", out / "labels.json")
    shown = capsys.readouterr()
    assert "left out: 8 images listed in" in shown.err
    assert "joined: class 30 becomes part of class 25" in shown.err
    clean = open_catalog(tmp_path / "clean.rec")
    assert clean.label_I.tolist() == [p for i, p in enumerate(person) if i not in wrong]
    # Nothing is left to be found.
    call("tools/label_report.py", model, "--data", tmp_path / "clean.rec", "--out", tmp_path / "b")
    report = json.loads((tmp_path / "b" / "labels.json").read_text())
    assert [report[kind] for kind in ("wrong_images", "two_people", "one_person")] == [[], [], []]
    assert not (tmp_path / "b" / "sheet.png").exists()


def test_what_is_missing_is_one_sentence(data, tmp_path):
    record, model, *_ = data
    tool = "tools/label_report.py"
    assert "does not say what it was trained on: give --data" in exit_line(tool, model)
    assert "is no run folder to write into: give --out" in exit_line(tool, model, "--data", record)
    assert "--batch-size is 0" in exit_line(tool, model, "--batch-size", "0")
