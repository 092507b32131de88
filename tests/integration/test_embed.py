"""embed.py on a folder and on a record: files that other programs read, resumed, shared."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from kappaface_dist.backbones import build_backbone
from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.data.sources.recordio_writer import RecordWriter
from kappaface_dist.models.embedder import load_embedder
from kappaface_dist.models.export import save_backbone
from tests.integration.test_verification_tools import TORCHRUN, start


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    network = build_backbone("tiny", embedding_size=16, image_size=32)
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, network, name="tiny", embedding_size=16, image_size=32)
    return path


def pictures(count):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [encode_jpeg(image.repeat(8, 0).repeat(8, 1)) for image in coarse]


def test_a_folder_on_one_and_two_processes_and_again(model, tmp_path):
    folder = tmp_path / "photos"
    payloads = pictures(9)
    for number, payload in enumerate(payloads):
        (folder / f"p{number // 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"p{number // 3}" / f"{number}.jpg").write_bytes(payload)
    one = start("tools/embed.py", model, folder, tmp_path / "one", "--json=-")
    assert one.returncode == 0, one.stderr
    assert json.loads(one.stdout)["reused"] == 0
    found = np.load(tmp_path / "one" / "embeddings.npy")
    np.testing.assert_allclose(found, load_embedder(model).embed(payloads), atol=1e-5)
    lines = (tmp_path / "one" / "images.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["label"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert rows[4]["image"].endswith("p1/4.jpg")
    again = start("tools/embed.py", model, folder, tmp_path / "one")
    assert "9 images, 9 of them done before, 0 unreadable" in again.stdout, again.stderr
    two = start(*TORCHRUN, "tools/embed.py", model, folder, tmp_path / "two", "--format=parquet")
    assert two.returncode == 0, two.stderr
    table = pq.read_table(tmp_path / "two" / "embeddings.parquet")
    assert table.column("image").to_pylist() == [row["image"] for row in rows]
    assert table.column("label").to_pylist() == [row["label"] for row in rows]
    np.testing.assert_array_equal(np.array(table.column("embedding").to_pylist()), found)


def test_a_record_and_loose_files_with_one_unreadable(model, tmp_path):
    payloads = pictures(4)
    with RecordWriter(tmp_path / "train") as writer:
        for number, payload in enumerate(payloads):
            writer.write(number // 2, payload)
    ended = start("tools/embed.py", model, tmp_path / "train.rec", tmp_path / "a", "--no-flip")
    assert ended.returncode == 0, ended.stderr
    found = np.load(tmp_path / "a" / "embeddings.npy")
    expected = load_embedder(model).embed(payloads, flip=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    loose = tmp_path / "loose"
    loose.mkdir()
    for number, payload in enumerate([*payloads, b"broken"]):
        (loose / f"{number}.jpg").write_bytes(payload)
    ended = start("tools/embed.py", model, loose, tmp_path / "b", "--json=-")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert [entry["image"] for entry in report["unreadable"]] == [str(loose / "4.jpg")]
    found = np.load(tmp_path / "b" / "embeddings.npy")
    assert np.isnan(found).any(axis=1).tolist() == [False] * 4 + [True]
    line = (tmp_path / "b" / "images.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["label"] is None
    ended = start("tools/embed.py", model, tmp_path / "absent", tmp_path / "c")
    assert (ended.returncode, "there is no dataset at" in ended.stderr) == (1, True)
