"""Batches: right pixels, labels and order, on any number of ranks, in spite of corrupt images."""

import io
import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from kappaface_dist.data.loading.augment import draw_changes
from kappaface_dist.data.loading.dali import dali_is_installed
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.loading.sampler import Shuffle
from kappaface_dist.data.sources.catalog import open_catalog
from tests.processes import run_on_ranks
from tests.unit.data.loading.loaders import ARGUMENTS, each_dali_loader, each_loader
from tests.unit.data.made_records import jpeg, record, write_records

NUM_IMAGES = 23


@pytest.fixture
def dataset(tmp_path):
    """Every image has a class of its own, so that labels tell which images came."""
    return write_records(tmp_path / "train.rec", list(range(NUM_IMAGES)), size=32)


def loader_of(path, loader="auto", **changes):
    settings = {"batch_size": 4, "image_size": 32, "augment": "flip", "num_threads": 2, "seed": 7}
    settings |= ARGUMENTS.get(loader, {"loader": loader}) | changes
    return build_loader(open_catalog(path), device=torch.device("cpu"), **settings)


def labels_of(loader, position, num_steps):
    return [batch.label_B.numpy() for batch in loader.batches(position, num_steps)]


@each_loader
def test_pixels_are_those_of_pillow(dataset, loader):
    loader = loader_of(dataset, loader=loader)
    flips = draw_changes("flip", 7, np.arange(40)).flip_B
    assert 8 < flips.sum() < 32
    seen = 0
    for batch in loader.batches(0, 10):
        assert batch.image_B3HW.dtype == torch.float32
        assert batch.label_B.dtype == torch.int64
        for image_3HW, label in zip(batch.image_B3HW, batch.label_B.tolist(), strict=True):
            oracle_HW3 = np.asarray(Image.open(io.BytesIO(jpeg(label, 32))).convert("RGB"))
            oracle_3HW = (oracle_HW3.astype(np.float32).transpose(2, 0, 1) - 127.5) / 127.5
            if flips[seen]:
                oracle_3HW = oracle_3HW[:, :, ::-1]
            # Two builds of libjpeg may differ by a rounding of the colour conversion.
            assert np.abs(image_3HW.numpy() - oracle_3HW).max() <= 2 / 127.5
            seen += 1
    assert loader.num_read == seen == 40
    assert loader.num_corrupt == 0


@each_loader
def test_without_augmentation_nothing_is_mirrored(dataset, loader):
    def images(augment):
        batches = loader_of(dataset, loader=loader, augment=augment).batches(0, 6)
        return [batch.image_B3HW for batch in batches]

    once = images("none")
    upright = {image.numpy().tobytes() for image in torch.cat(once)}
    mirrored = [
        image for image in torch.cat(images("flip")) if image.numpy().tobytes() not in upright
    ]
    assert len(mirrored) == draw_changes("flip", 7, np.arange(24)).flip_B.sum()
    assert all(image.flip(-1).contiguous().numpy().tobytes() in upright for image in mirrored)


@each_loader
@pytest.mark.parametrize("num_threads", [1, 3, 8])
def test_the_order_is_the_streams(dataset, num_threads, loader):
    loader = loader_of(dataset, num_threads=num_threads, loader=loader)
    labels = np.concatenate(labels_of(loader, 0, 12))
    np.testing.assert_array_equal(labels, Shuffle(NUM_IMAGES, 7).indices(0, 48))


@each_loader
@pytest.mark.parametrize("augment", ["flip", "strong"])
def test_resuming_at_any_step_continues_exactly(dataset, loader, augment):
    whole = list(loader_of(dataset, loader=loader, augment=augment).batches(0, 9))
    again = loader_of(dataset, loader=loader, augment=augment)
    for step in range(9):
        found = next(again.batches(step * 4, 9 - step))
        expected = whole[step]
        assert torch.equal(expected.image_B3HW, found.image_B3HW)
        assert torch.equal(expected.label_B, found.label_B)


def _labels_on_this_rank(path, loader, position, num_steps):
    return np.stack(labels_of(loader_of(path, loader=loader), position, num_steps))


@each_loader
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_ranks_share_the_stream(dataset, num_ranks, loader):
    open_catalog(dataset)  # fills the cache before the processes start
    position, num_steps = 6, 10
    by_rank = run_on_ranks(num_ranks, _labels_on_this_rank, dataset, loader, position, num_steps)
    assert all(labels.shape == (num_steps, 4) for labels in by_rank)
    together = np.stack(by_rank, axis=1).reshape(-1)
    expected = Shuffle(NUM_IMAGES, 7).indices(position, num_steps * 4 * num_ranks)
    np.testing.assert_array_equal(together, expected)
    start = NUM_IMAGES - position
    epoch = together[start : start + NUM_IMAGES]
    assert sorted(epoch) == list(range(NUM_IMAGES))


def with_corrupt_images(path, corrupt):
    payloads = [jpeg(i, 32) for i in range(NUM_IMAGES)]
    for i in corrupt:
        payloads[i] = payloads[i][: len(payloads[i]) // 2]
    path.write_bytes(b"".join(record(i, payload, i) for i, payload in enumerate(payloads)))
    return path


@each_loader
@pytest.mark.parametrize("num_threads", [1, 4])
def test_corrupt_images_are_counted_reported_and_replaced(tmp_path, caplog, num_threads, loader):
    corrupt = {5, 6, NUM_IMAGES - 1}
    replacement = {5: 7, 6: 7, NUM_IMAGES - 1: 0}
    path = with_corrupt_images(tmp_path / "train.rec", corrupt)
    loader = loader_of(path, num_threads=num_threads, augment="none", loader=loader)
    drawn = Shuffle(NUM_IMAGES, 7).indices(0, 3 * NUM_IMAGES)
    catalog = open_catalog(path)
    position = 0
    for batch in loader.batches(0, 3 * NUM_IMAGES // 4):
        for image_3HW, label in zip(batch.image_B3HW, batch.label_B.tolist(), strict=True):
            index = int(drawn[position])
            assert label == replacement.get(index, index)
            oracle = np.asarray(Image.open(io.BytesIO(catalog.read(label))).convert("RGB"))
            found = (image_3HW.permute(1, 2, 0) * 127.5 + 127.5).round().numpy()
            assert np.abs(found - oracle.astype(np.float32)).max() <= 2
            position += 1
    assert loader.num_read == position
    assert loader.num_corrupt == sum(int(index) in corrupt for index in drawn[:position])
    reported = [where for where, _ in loader.corrupt]
    assert len(reported) == 3  # each once, though each was drawn three times
    for i in corrupt:
        assert sum(f"train.rec record {i} (" in where for where in reported) == 1
        assert caplog.text.count(f"train.rec record {i} (") == 1


def _epochs_on_this_rank(path, loader, position):
    batches = list(loader_of(path, loader=loader).batches(position, 8))
    return np.stack([batch.epoch_B.numpy() for batch in batches])


@each_loader
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_every_image_tells_its_epoch(tmp_path, num_ranks, loader):
    """Also in steps that two epochs share; -1 for what stands in for an unreadable image."""
    corrupt = [5, 6, NUM_IMAGES - 1]
    path = with_corrupt_images(tmp_path / "train.rec", corrupt)
    open_catalog(path)
    position = 18
    by_rank = run_on_ranks(num_ranks, _epochs_on_this_rank, path, loader, position)
    together = np.stack(by_rank, axis=1).reshape(-1)
    place = np.arange(position, position + len(together))
    drawn = Shuffle(NUM_IMAGES, 7).indices(position, len(place))
    expected = np.where(np.isin(drawn, corrupt), -1, place // NUM_IMAGES)
    np.testing.assert_array_equal(together, expected)
    assert {-1, 0, 1} <= set(expected.tolist())


@each_dali_loader
def test_loaders_find_the_same_images_unreadable(tmp_path, loader):
    """JPEGs with a changed byte anywhere, PNGs whole and cut, grey ones, large ones."""
    generator = np.random.default_rng(0)
    payloads = []
    for i in range(240):
        payload = bytearray(jpeg(i, 64 if i % 12 == 5 else 32))
        if i % 3 == 0:
            payload[generator.integers(2, len(payload))] ^= 1 << generator.integers(0, 8)
        elif i % 12 == 1:
            del payload[generator.integers(2, len(payload)) :]
        elif i % 12 == 2:
            buffer = io.BytesIO()
            picture = Image.open(io.BytesIO(payload)).convert("L" if i % 24 == 2 else "RGB")
            picture.save(buffer, "PNG" if i % 36 == 2 else "JPEG")
            payload = buffer.getvalue()[: None if i % 5 else 60]
        payloads.append(bytes(payload))
    content = b"".join(record(i, payload, i) for i, payload in enumerate(payloads))
    (tmp_path / "train.rec").write_bytes(content)
    found = {}
    for name in ("cpu", loader):
        one = loader_of(tmp_path / "train.rec", loader=name, batch_size=8)
        batches = list(one.batches(0, 45))
        labels = torch.cat([batch.label_B for batch in batches])
        found[name] = (labels.tolist(), one.num_corrupt, dict(one.corrupt))
        found[name + " images"] = torch.cat([batch.image_B3HW for batch in batches])
    assert found["cpu"] == found[loader]
    assert 20 < len(found["cpu"][2]) < 100
    # DALI resizes large ones by another filter, everything else has the same pixels.
    off = (found["cpu images"] - found[loader + " images"]).abs().mean((1, 2, 3)) * 127.5
    large = torch.tensor([label % 12 == 5 for label in found["cpu"][0]])
    # DALI multiplies by 1 / 127.5 where we divide.
    assert off[~large].max() < 1e-4
    low, high = (0.5, 6) if loader == "dali_decodes" else (0, 1e-4)
    assert low <= off[large].max() < high


@each_loader
def test_what_is_stored_turned_comes_as_a_viewer_shows_it(tmp_path, loader):
    """Every orientation of EXIF, in JPEGs and a PNG; DALI is at work too, on the CPU."""
    people = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        for kind in ("JPEG", "PNG"):
            file = io.BytesIO()
            Image.open(io.BytesIO(jpeg(5, 32))).save(file, kind, quality=95, exif=exif)
            people.append(file.getvalue())
    path = tmp_path / "train.rec"
    path.write_bytes(b"".join(record(i, payload, i) for i, payload in enumerate(people)))
    # Two epochs: what was good once is not looked into again.
    batches = list(loader_of(path, loader=loader, augment="none").batches(0, len(people) // 2))
    image_B3HW = torch.cat([batch.image_B3HW for batch in batches])
    label_B = torch.cat([batch.label_B for batch in batches]).tolist()
    assert sorted(label_B) == sorted(2 * list(range(len(people))))
    for image_3HW, label in zip(image_B3HW, label_B, strict=True):
        shown = ImageOps.exif_transpose(Image.open(io.BytesIO(people[label]))).convert("RGB")
        oracle_3HW = (np.asarray(shown, np.float32).transpose(2, 0, 1) - 127.5) / 127.5
        # Two builds of libjpeg, as above.
        assert np.abs(image_3HW.numpy() - oracle_3HW).max() <= 2 / 127.5, label


@pytest.mark.skipif(dali_is_installed(), reason="NVIDIA DALI is installed")
def test_dali_missing(dataset):
    with pytest.raises(RuntimeError, match=r"pip install 'kappaface_dist\[dali\]'"):
        loader_of(dataset, loader="dali")


@each_loader
def test_nothing_is_counted_before_it_is_delivered(dataset, loader):
    loader = loader_of(dataset, loader=loader)
    next(loader.batches(0, 100))
    assert loader.num_read == 4


@each_loader
def test_a_dataset_without_a_readable_image_stops(tmp_path, loader):
    path = with_corrupt_images(tmp_path / "train.rec", range(NUM_IMAGES))
    with pytest.raises(ValueError, match=f"the {NUM_IMAGES - 1} images after it are unreadable"):
        next(loader_of(path, loader=loader).batches(0, 3))


@each_loader
@pytest.mark.parametrize("how", ["exhaust", "close", "break", "again"])
def test_no_threads_are_left_behind(dataset, how, loader):
    before = set(threading.enumerate())
    loader = loader_of(dataset, loader=loader)
    if how == "exhaust":
        list(loader.batches(0, 3))
    elif how == "break":
        for _ in loader.batches(0, 100):
            break
    else:
        batches = loader.batches(0, 100)
        next(batches)
        assert set(threading.enumerate()) - before
        if how == "close":
            loader.close()
        else:
            list(loader.batches(0, 2))
        assert next(batches, None) is None
    assert not set(threading.enumerate()) - before


def test_unknown_names(dataset):
    with pytest.raises(ValueError, match=r"data\.loader is 'gpu': choose one of auto, dali, cpu"):
        loader_of(dataset, loader="gpu")
    with pytest.raises(ValueError, match=r"data\.augment is 'lots': choose one of none, flip"):
        loader_of(dataset, augment="lots")


@each_loader
@pytest.mark.parametrize("name", ["insightface_scalar", "insightface_vector", "train"])
def test_records_that_mxnet_wrote(shared_data, tmp_path, name, loader):
    for suffix in ("rec", "idx"):
        shutil.copy(shared_data / "recordio_mxnet" / f"{name}.{suffix}", tmp_path)
    catalog = open_catalog(tmp_path / f"{name}.rec")
    one = loader_of(
        tmp_path / f"{name}.rec",
        loader=loader,
        batch_size=catalog.num_images,
        image_size=112,
        augment="none",
    )
    (batch,) = one.batches(0, 1)
    order = Shuffle(catalog.num_images, 7).indices(0, catalog.num_images)
    assert batch.label_B.tolist() == catalog.label_I[order].tolist()
    assert one.num_corrupt == 0
    for image_3HW, index in zip(batch.image_B3HW, order, strict=True):
        oracle = np.asarray(Image.open(io.BytesIO(catalog.read(int(index)))).convert("RGB"))
        found = (image_3HW.permute(1, 2, 0) * 127.5 + 127.5).round().numpy()
        assert np.abs(found - oracle.astype(np.float32)).max() <= 2
