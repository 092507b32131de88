"""The data of a run: where the configuration says that it lies."""

from dataclasses import replace

import pytest

from kappaface_dist.config.keys import Config, Data
from kappaface_dist.training.fit import open_data
from tests.object_store import object_store  # noqa: F401 (a fixture)
from tests.processes import run_on_ranks
from tests.unit.data.made_records import write_records


def config_of(train, **data):
    return replace(Config(), data=Data(train=train, **data))


def opened(config):
    catalog = open_data(config)
    return [catalog.read(i) for i in range(catalog.num_images)], catalog.label_I.tolist()


def test_from_the_disk(tmp_path):
    path = write_records(tmp_path / "train.rec", [0, 1, 1], 16)
    there = opened(config_of(str(path)))
    assert run_on_ranks(2, opened, config_of(str(path))) == [there, there]


def test_from_object_storage(object_store, tmp_path):  # noqa: F811
    path = write_records(tmp_path / "train.rec", [0, 1, 1], 16)
    address = object_store.put("train/train.rec", path)
    there = opened(config_of(str(path)))
    cache = tmp_path / "cache"
    assert opened(config_of(address, cache=str(cache), cache_gigabytes=1e-4)) == there
    assert (cache / "s3" / "faces" / "train" / "train.rec").read_bytes() == path.read_bytes()
    # A list may name files of both kinds of place.
    both = opened(config_of([str(path), address], cache=str(cache)))
    assert both == (there[0] * 2, there[1] * 2)
    with pytest.raises(ValueError, match=r"data\.cache_gigabytes is 1e-06: raise it"):
        open_data(config_of(address, cache=str(cache), cache_gigabytes=1e-6))
