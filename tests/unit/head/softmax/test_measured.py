"""What was measured of the head's kernels is kept for its machine, and chosen by."""

import json
import logging

import pytest
import torch

from kappaface_dist.head.softmax import measured

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured.fastest.cache_clear()
    yield
    measured.fastest.cache_clear()


def test_the_faster_is_taken_for_batches_and_embeddings_of_that_size(caplog):
    caplog.set_level(logging.INFO)
    assert measured.fastest(CPU, 512, 1024) == "chunks"  # nothing is known
    measured.keep({measured.key_of(CPU, 512, 1024): {"tiles": 0.02, "chunks": 0.03}})
    measured.keep({measured.key_of(CPU, 512, 4096): {"tiles": 0.09, "chunks": 0.08}})
    for num_images, size, name in (
        (1024, 512, "tiles"),
        (900, 500, "tiles"),
        (1900, 512, "tiles"),
        (2100, 512, "chunks"),
        (8000, 512, "chunks"),
        (256, 512, "chunks"),  # never measured
        (1024, 256, "chunks"),
    ):
        assert measured.fastest(CPU, size, num_images) == name
    assert "head.fused is auto: tiles, the faster here (chunks 0.03 s, tiles 0.02 s" in caplog.text


def test_another_torch_or_gpu_knows_nothing_of_it(monkeypatch):
    measured.keep({measured.key_of(CPU, 512, 1024): {"tiles": 0.02, "chunks": 0.03}})
    monkeypatch.setattr(torch, "__version__", "1.0")
    measured.fastest.cache_clear()
    assert measured.fastest(CPU, 512, 1024) == "chunks"


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"a": {"tiles": "x"}}'])
def test_a_damaged_file_is_named_and_chunks_are_taken(content, caplog):
    measured.path().parent.mkdir(parents=True)
    measured.path().write_text(content)
    assert measured.fastest(CPU, 512, 1024) == "chunks"
    assert f"{measured.path()}, the measurements of the head's kernels, cannot" in caplog.text
    measured.keep({"key": {"tiles": 1.0, "chunks": 2.0}})
    assert json.loads(measured.path().read_text()) == {"key": {"tiles": 1.0, "chunks": 2.0}}
