"""Datasets in object storage: on a real S3 server, against the same files on the disk."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from kappaface_dist.data.loading import sampler
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.sources import remote_dataset, remote_store
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.recordio_writer import RecordWriter
from kappaface_dist.data.sources.remote_store import CacheSettings
from tests.object_store import object_store  # noqa: F401 (a fixture)
from tests.unit.data.made_records import jpeg
from tests.unit.data.sources.test_tar_source import write_tar

NUM_SHARDS, EACH = 12, 3
PICTURES = [jpeg(seed, 16) for seed in range(NUM_SHARDS * EACH)]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Shards of three pictures, one of four classes each, and a stock-like record of all."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "shards").mkdir()
    for shard in range(NUM_SHARDS):
        files = [("left_out.txt", b"neither")]
        for i in range(shard * EACH, (shard + 1) * EACH):
            files += [(f"{i}.jpg", PICTURES[i]), (f"{i}.cls", b"%d" % (i % 4))]
        write_tar(folder / "shards" / f"{shard:03d}.tar", files)
    (folder / "shards" / "000.names").write_text("ann\nbob\nzoë\ncy\n")
    (folder / "rec").mkdir()
    with RecordWriter(folder / "rec" / "train") as writer:
        for i, picture in enumerate(PICTURES):
            writer.write(i % 4, picture)
    (folder / "rec" / "train.names").write_text("ann\nbob\nzoë\ncy\n")
    return folder


@pytest.fixture(scope="module")
def stored(object_store, local):  # noqa: F811
    """The same files on the server, and another that is no dataset."""
    for path in sorted(local.rglob("*")):
        if path.suffix in (".tar", ".rec", ".idx", ".names"):
            object_store.put(str(path.relative_to(local)), path)
    object_store.put("shards/readme.txt", b"no dataset")
    return object_store


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(remote_store, "WAITS", (0.0,) * len(remote_store.WAITS))


def cache(folder, gigabytes=1.0):
    return CacheSettings(str(folder), gigabytes)


def content(catalog):
    read = [catalog.read(i) for i in range(catalog.num_images)]
    return read, catalog.label_I.tolist(), list(catalog.class_names), catalog.left_out.counts


def cached_bytes(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.suffix in (".tar", ".rec", ".idx"))


FORMS = {
    "pattern": ("s3://faces/shards/0*.tar", "shards"),
    "folder": ("s3://faces/shards/", "shards"),
    "numbers": ("s3://faces/shards/{000..011}.tar", "shards"),
    "record": ("s3://faces/rec/train.rec", "rec"),
    "folder of a record": ("s3://faces/rec", "rec"),
    "web": ("{url}/faces/shards/{{000..011}}.tar", "shards"),
    "record on the web": ("{url}/faces/rec/train.rec", "rec"),
}


@pytest.mark.parametrize(("address", "folder"), FORMS.values(), ids=FORMS)
def test_what_is_read_is_what_is_on_the_disk(stored, local, tmp_path, address, folder):
    address = address.format(url=stored.url) if "{url}" in address else address
    here = content(open_catalog(local / folder))
    stored.num_gets.clear()
    catalog = open_catalog(address, cache=cache(tmp_path))
    assert content(catalog) == here
    assert catalog.files == open_catalog(local / folder).files
    assert str(tmp_path) in catalog.where(0)
    objects = {key: n for key, n in stored.num_gets.items() if key.endswith((".tar", ".rec"))}
    assert set(objects.values()) == {1}
    assert len(objects) == (NUM_SHARDS if folder == "shards" else 1)
    # The second start brings nothing.
    stored.num_gets.clear()
    assert content(open_catalog(address, cache=cache(tmp_path))) == here
    assert not [key for key in stored.num_gets if key.endswith((".tar", ".rec", ".idx"))]


def batches(catalog, block):
    loader = build_loader(
        catalog,
        loader="cpu",
        batch_size=4,
        image_size=16,
        block_shuffle=block,
        num_threads=2,
        seed=3,
        device=torch.device("cpu"),
    )
    return [(b.image_B3HW.clone(), b.label_B.clone()) for b in loader.batches(0, 20)]


def test_a_cache_smaller_than_the_dataset(stored, local, tmp_path, monkeypatch, caplog):
    """The same stream, over two epochs; never more in the cache than it may hold."""
    for module in (sampler, remote_dataset):
        monkeypatch.setattr(module, "WINDOW_BLOCKS", 2)
    size = (local / "shards" / "000.tar").stat().st_size
    settings = cache(tmp_path, 5 * size / 1e9)
    caplog.set_level(logging.INFO)
    catalog = open_catalog("s3://faces/shards", cache=settings, block=EACH)
    assert "1.0 times an epoch" in caplog.text
    assert content(catalog) == content(open_catalog(local / "shards"))
    assert catalog.where(4) == "s3://faces/shards/001.tar image 1"
    assert 0 < cached_bytes(tmp_path) <= 5 * size
    stored.num_gets.clear()
    expected = batches(open_catalog(local / "shards"), EACH)
    for found, wanted in zip(batches(catalog, EACH), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert cached_bytes(tmp_path) <= 5 * size
    # 80 images are two epochs of 36 and the beginning of a third.
    counts = [n for key, n in stored.num_gets.items() if key.endswith(".tar")]
    assert sum(counts) <= 3 * NUM_SHARDS
    # A later start knows what they hold, and brings what it reads only.
    stored.num_gets.clear()
    catalog = open_catalog("s3://faces/shards", cache=settings, block=EACH)
    assert not [key for key in stored.num_gets if key.endswith(".tar")]
    assert catalog.read(0) == PICTURES[0]


def test_what_a_small_cache_cannot_do(stored, local, tmp_path):
    size = (local / "shards" / "000.tar").stat().st_size / 1e9
    with pytest.raises(ValueError, match=r"block_shuffle is 0, .*: set data\.cache_gigabytes"):
        open_catalog("s3://faces/shards", cache=cache(tmp_path, 5 * size))
    with pytest.raises(ValueError, match=r"block_shuffle is 3, .*: set data\.cache_gigabytes"):
        open_catalog("s3://faces/shards", cache=cache(tmp_path, 5 * size), block=EACH)
    with pytest.raises(ValueError, match=r"has 1\.024e-05 GB, is kept whole, .*: raise it"):
        open_catalog("s3://faces/shards/000.tar", cache=cache(tmp_path, size / 2), block=EACH)


def test_what_is_missing(stored, tmp_path):
    settings = cache(tmp_path)
    for address, words in {
        "s3://faces/shards/{010..013}.tar": "no file s3://faces/shards/012.tar: .*upload",
        f"{stored.url}/faces/shards/{{010..013}}.tar": "no file .*/faces/shards/012.tar: .*upload",
        "s3://faces/nothing/": r"no \.rec or \.tar file at s3://faces/nothing/ \(0 files",
        "s3://faces/shards/x*.tar": r"no \.rec or \.tar file .* \(14 files in the folder\)",
        "s3://nowhere/train.rec": "no file s3://nowhere/train.rec",
        f"{stored.url}/faces/shards/*.tar": "the web has no lists of files",
    }.items():
        with pytest.raises(ValueError, match=words):
            open_catalog(address, cache=settings)
    for part in ("00000", "00002"):
        stored.put(f"parts/train-{part}-of-00003.tar", b"")
    with pytest.raises(ValueError, match=r"train-00001-of-00003\.tar is not among them \(1 "):
        open_catalog("s3://faces/parts", cache=settings)


def test_what_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for address, extra in (("gs://b/a.rec", "remote-gs"), ("https://h/a.tar", "remote")):
        with pytest.raises(RuntimeError, match=rf"pip install 'kappaface_dist\[{extra}\]'"):
            open_catalog(address, cache=cache(tmp_path))


@pytest.mark.parametrize("failures", [["error", "cut"], ["cut"] * 3])
def test_what_fails_is_tried_again(stored, tmp_path, failures, caplog):
    address = f"{stored.url}/faces/shards/003.tar"
    stored.failures["faces/shards/003.tar"] = list(failures)
    catalog = open_catalog(address, cache=cache(tmp_path))
    assert [catalog.read(i) for i in range(EACH)] == PICTURES[9:12]
    assert caplog.text.count("again in") == len(failures)


def test_what_goes_on_failing(stored, tmp_path):
    address = f"{stored.url}/faces/shards/004.tar"
    for failure, tries in (("error", "5 of 5"), ("denied", "1 of 5")):
        stored.failures["faces/shards/004.tar"] = [failure] * 9
        with pytest.raises(RuntimeError, match=rf"reading {address} failed after {tries} tries"):
            open_catalog(address, cache=cache(tmp_path))
    stored.failures.clear()
    assert open_catalog(address, cache=cache(tmp_path)).num_images == EACH


def test_s3_that_fails_and_comes_back(stored, tmp_path):
    stored.failures["faces/shards/005.tar"] = ["error", "cut"]
    catalog = open_catalog("s3://faces/shards/005.tar", cache=cache(tmp_path))
    assert [catalog.read(i) for i in range(EACH)] == PICTURES[15:18]


def test_an_object_that_is_replaced(stored, local, tmp_path, monkeypatch):
    """A run goes on with what it began with, or stops; the next start takes the new one."""
    for module in (sampler, remote_dataset):
        monkeypatch.setattr(module, "WINDOW_BLOCKS", 1)
    for shard in range(4):
        stored.put(f"moving/{shard}.tar", local / "shards" / f"{shard:03d}.tar")
    size = (local / "shards" / "000.tar").stat().st_size
    settings = cache(tmp_path, 2.5 * size / 1e9)
    catalog = open_catalog("s3://faces/moving", cache=settings, block=EACH)
    assert [catalog.read(i) for i in range(12)] == PICTURES[:12]
    stored.put("moving/0.tar", local / "shards" / "007.tar")
    with pytest.raises(RuntimeError, match=r"moving/0\.tar was replaced or removed .*start again"):
        catalog.read(0)
    catalog = open_catalog("s3://faces/moving", cache=settings, block=EACH)
    assert [catalog.read(i) for i in range(12)] == PICTURES[21:24] + PICTURES[3:12]
    assert catalog.label_I[:3].tolist() == [21 % 4, 22 % 4, 23 % 4]


def test_a_cache_that_was_damaged_or_left_in_the_middle(stored, tmp_path):
    settings = cache(tmp_path)
    address = "s3://faces/shards/00[6-8].tar"
    open_catalog(address, cache=settings)
    folder = tmp_path / "s3" / "faces" / "shards"
    (folder / "006.tar").write_bytes(b"cut off")
    (folder / "007.tar").unlink()
    # As a process leaves it that was killed while it brought a file.
    (folder / "007.tar.kfbringing").touch()
    os.truncate(folder / "007.tar.kfbringing", 10**12)
    (folder / "007.tar.part").write_bytes(b"half")
    (tmp_path / "bytes").write_text("damaged")
    catalog = open_catalog(address, cache=settings)
    assert [catalog.read(i) for i in range(9)] == PICTURES[18:27]
    assert not [*folder.glob("*.part"), *folder.glob("*.kfbringing")]


RANK = """
import sys
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.remote_store import CacheSettings
catalog = open_catalog("s3://faces/shards", cache=CacheSettings(sys.argv[1]))
print(*(len(catalog.read(i)) for i in range(catalog.num_images)))
"""


def test_the_ranks_of_a_machine_bring_each_file_once(stored, tmp_path):
    stored.num_gets.clear()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, tmp_path],
            env={**os.environ, "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "3"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    sizes = " ".join(str(len(picture)) for picture in PICTURES)
    assert [rank.communicate(timeout=200)[0].strip() for rank in ranks] == [sizes] * 3
    counts = {key: n for key, n in stored.num_gets.items() if key.endswith(".tar")}
    assert counts == {f"faces/shards/{shard:03d}.tar": 1 for shard in range(NUM_SHARDS)}


def test_room_is_made_by_what_was_used_longest_ago(stored, local, tmp_path):
    size = (local / "shards" / "000.tar").stat().st_size
    settings = cache(tmp_path, 3.2 * size / 1e9)
    for shard in ("000", "001", "002", "000", "003"):
        open_catalog(f"s3://faces/shards/{shard}.tar", cache=settings)
    kept = sorted(p.name for p in (tmp_path / "s3" / "faces" / "shards").glob("*.tar"))
    assert kept == ["000.tar", "002.tar", "003.tar"]
    assert cached_bytes(tmp_path) <= 3.2 * size


def test_neither_secrets_nor_names_lead_elsewhere():
    signed = "https://me:pass@host:8080/a/../b.tar?X-Amz-Signature=abc&X-Amz-Expires=9"
    assert remote_store.masked(f"no {signed}, said it") == "no https://host:8080/a/../b.tar said it"
    place = remote_store.place_of(signed)
    assert place == remote_store.place_of(signed.replace("abc", "def"))
    assert place != remote_store.place_of("https://host:8080/a/../b.tar?file=2")
    assert ".." not in place.parts
    assert "pass" not in str(place)
    assert remote_store.place_of("s3://b/k?x/" + "n" * 300 + ".rec").suffix == ".rec"
