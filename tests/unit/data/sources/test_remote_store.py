"""Google's storage, by its own client, against the same files on the disk."""

import pytest

from kappaface_dist.data.sources import remote_store
from kappaface_dist.data.sources.catalog import open_catalog
from tests.google_store import google_store  # noqa: F401 (a fixture)
from tests.unit.data.sources.test_remote_dataset import (
    EACH,
    NUM_SHARDS,
    PICTURES,
    cache,
    content,
    local,  # noqa: F401 (a fixture)
    no_waiting,  # noqa: F401 (a fixture)
)


@pytest.fixture(scope="module")
def stored(google_store, local):  # noqa: F811
    for path in sorted(local.rglob("*")):
        if path.suffix in (".tar", ".rec", ".idx", ".names"):
            google_store.put(str(path.relative_to(local)), path)
    return google_store


FORMS = {
    "pattern": ("gs://faces/shards/0*.tar", "shards"),
    "numbers": ("gs://faces/shards/{000..011}.tar", "shards"),
    "folder": ("gs://faces/shards/", "shards"),
    "record": ("gs://faces/rec/train.rec", "rec"),
    "folder of a record": ("gcs://faces/rec", "rec"),
}


@pytest.mark.parametrize(("address", "folder"), FORMS.values(), ids=FORMS)
def test_what_is_read_is_what_is_on_the_disk(stored, local, tmp_path, address, folder):  # noqa: F811
    catalog = open_catalog(address, cache=cache(tmp_path))
    assert content(catalog) == content(open_catalog(local / folder))
    assert catalog.num_images == NUM_SHARDS * EACH


def test_a_cache_smaller_than_the_dataset(stored, local, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("kappaface_dist.data.sources.remote_dataset.WINDOW_BLOCKS", 2)
    size = (local / "shards" / "000.tar").stat().st_size
    settings = cache(tmp_path, 5 * size / 1e9)
    catalog = open_catalog("gs://faces/shards", cache=settings, block=EACH)
    assert content(catalog) == content(open_catalog(local / "shards"))


def test_what_is_missing(stored, tmp_path):
    for address, words in {
        "gs://faces/shards/{010..013}.tar": "no file gs://faces/shards/012.tar: .*upload",
        "gs://faces/nothing/": r"no \.rec or \.tar file at gs://faces/nothing/ \(0 files",
        "gs://nowhere/train.rec": "no file gs://nowhere/train.rec",
    }.items():
        with pytest.raises(ValueError, match=words):
            open_catalog(address, cache=cache(tmp_path))
    for part in ("00000", "00002"):
        stored.put(f"parts/train-{part}-of-00003.tar", b"none")
    with pytest.raises(ValueError, match=r"train-00001-of-00003\.tar is not among them \(1 "):
        open_catalog("gs://faces/parts", cache=cache(tmp_path))


def test_what_fails_comes_again_and_what_is_replaced_is_said(stored, local, tmp_path):  # noqa: F811
    stored.failures["shards/005.tar"] = ["error", "cut"]
    catalog = open_catalog("gs://faces/shards/005.tar", cache=cache(tmp_path))
    assert [catalog.read(i) for i in range(EACH)] == PICTURES[15:18]
    assert stored.failures["shards/005.tar"] == []
    address = stored.put("moving/0.tar", local / "shards" / "000.tar")
    before = remote_store.look(address)
    stored.put("moving/0.tar", local / "shards" / "001.tar")
    with pytest.raises(ValueError, match=r"moving/0\.tar was replaced or removed .*start again"):
        remote_store.download(before, tmp_path / "moving.tar")


def test_what_is_refused_is_not_asked_for_again(stored, tmp_path):
    """Google refuses names that are not there to whom it shows no list: no names beside then."""
    stored.failures["shards/006.names"] = ["denied"]
    catalog = open_catalog("gs://faces/shards/006.tar", cache=cache(tmp_path))
    assert catalog.num_images == EACH
    stored.failures["shards/007.tar"] = ["denied"]
    with pytest.raises(RuntimeError, match=r"shards/007\.tar failed after 1 of 5 tries") as raised:
        open_catalog("gs://faces/shards/007.tar", cache=cache(tmp_path))
    assert "\n" not in str(raised.value)
