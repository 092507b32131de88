"""Embeddings on disk: the same bytes from any number of ranks, made again only where needed."""

import numpy as np
import pytest
import torch

from kappaface_dist.backbones import build_backbone
from kappaface_dist.data.images import decode_image, encode_jpeg
from kappaface_dist.evaluation.embedding import store as embedding_store
from kappaface_dist.evaluation.embedding.store import ImageList, embed_to_folder
from tests.processes import run_on_ranks


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(embedding_store, "PART_IMAGES", 8)


def make_payloads(count):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [encode_jpeg(image.repeat(4, 0).repeat(4, 1)) for image in coarse]


def embed(payloads, folder, **options):
    torch.manual_seed(0)
    model = build_backbone("tiny", embedding_size=16, image_size=16)
    reads = []

    def decode(number, payload):
        reads.append(number)
        return decode_image(payload, 16)

    images = ImageList(len(payloads), lambda i: payloads[i], decode, lambda i: f"picture {i}")
    options = {"settings": {"weights": "w"}, "batch_size": 3, **options}
    stored = embed_to_folder(model, images, folder, device=torch.device("cpu"), **options)
    assert model.training
    rows = np.concatenate([rows for _, rows in stored.parts()])
    return rows, stored.num_reused, len(reads), stored.unreadable


def test_any_number_of_ranks_writes_the_same(tmp_path):
    payloads = make_payloads(29)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have
    expected = embed(payloads, tmp_path / "0")[0]
    torch.set_num_threads(threads)
    assert expected.shape == (29, 16)
    for num_ranks in (1, 2, 5):  # 4 parts: the last of 5 ranks has none
        results = run_on_ranks(num_ranks, embed, payloads, tmp_path / str(num_ranks))
        for rows, num_reused, *_ in results:
            np.testing.assert_array_equal(rows, expected)
            assert num_reused == 0
        assert sum(reads for _, _, reads, _ in results) == 29


def test_rows_are_the_models_sums_over_flips(tmp_path):
    payloads = make_payloads(5)
    torch.manual_seed(0)
    model = build_backbone("tiny", embedding_size=16, image_size=16).eval()
    for flip in (True, False):
        rows = embed(payloads, tmp_path / str(flip), flip=flip)[0]
        for payload, row in zip(payloads, rows, strict=True):
            pixels = torch.from_numpy(decode_image(payload, 16).astype(np.float32))
            image = ((pixels - 127.5) / 127.5).permute(2, 0, 1)[None]
            with torch.no_grad():
                expected = model(image)
                if flip:
                    expected = expected + model(image.flip(-1))
            np.testing.assert_allclose(row, expected[0], atol=1e-4)


def test_only_what_changed_is_made_again(tmp_path):
    payloads = make_payloads(29)
    first, *_ = embed(payloads, tmp_path)
    again, num_reused, reads, _ = embed(payloads, tmp_path)
    assert (num_reused, reads) == (29, 0)
    np.testing.assert_array_equal(again, first)
    # One image of the second part is another now.
    payloads[9] = make_payloads(40)[35]
    changed, num_reused, reads, _ = embed(payloads, tmp_path)
    assert (num_reused, reads) == (21, 8)
    assert np.flatnonzero((changed != first).any(axis=1)).tolist() == [9]
    # An interrupted job: a part is missing, another was cut off, a third half written.
    (tmp_path / "part_000000.safetensors").unlink()
    cut = tmp_path / "part_000002.safetensors"
    cut.write_bytes(cut.read_bytes()[:100])
    (tmp_path / "part_000003.safetensors.part").write_bytes(b"half")
    resumed, num_reused, reads, _ = embed(payloads, tmp_path)
    assert (num_reused, reads) == (13, 16)
    np.testing.assert_array_equal(resumed, changed)
    # Other weights or another treatment: nothing of it holds.
    assert embed(payloads, tmp_path, settings={"weights": "v"})[1] == 0
    assert embed(payloads, tmp_path, settings={"weights": "v"}, flip=False)[1] == 0


def _broken(payloads, folder):
    try:
        embed(payloads, folder)
    except ValueError as error:
        return str(error)


def test_unreadable_images_end_all_ranks_or_are_kept_as_such(tmp_path):
    payloads = make_payloads(29)
    for number in (3, 16, 17, 18):  # 16 to 18 are a whole batch
        payloads[number] = b"broken"
    messages = run_on_ranks(3, _broken, payloads, tmp_path / "a")
    assert len(set(messages)) == 1
    assert messages[0].startswith("picture ")
    assert "not a readable image" in messages[0]
    rows, _, _, unreadable = embed(payloads, tmp_path / "b", keep_unreadable=True)
    assert np.flatnonzero(np.isnan(rows).any(axis=1)).tolist() == [3, 16, 17, 18]
    assert sorted(where for where, _ in unreadable) == [
        "picture 16", "picture 17", "picture 18", "picture 3"
    ]  # fmt: skip
    # Reported again when nothing is made anew.
    assert embed(payloads, tmp_path / "b", keep_unreadable=True)[1:] == (29, 0, unreadable)
