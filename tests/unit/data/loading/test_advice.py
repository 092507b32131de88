"""What is said when training waits for data."""

from dataclasses import replace

import pytest
import torch

from kappaface_dist.data.loading.advice import Reading, advice
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.sources.catalog import open_catalog
from tests.unit.data.made_records import write_records

GOOD = Reading(
    loader="dali",
    on_gpu=True,
    has_dali=True,
    num_threads=8,
    num_cores=8,
    augment="flip",
    block_shuffle=1024,
)


def test_nothing_is_said_below_5_percent():
    assert advice(0.05, GOOD) is None
    assert advice(0.051, GOOD).startswith("training waits for data 5% of the time: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loader": "cpu"}, "set data.loader=dali"),
        ({"loader": "cpu", "has_dali": False}, "pip install 'kappaface_dist[dali]'"),
        ({"num_threads": 2}, "raise data.num_threads from 2 to 8"),
        ({"augment": "strong"}, "try data.augment=flip"),
        ({"block_shuffle": 0}, "set data.block_shuffle=1024"),
        ({}, "more than its 8 cores"),
    ],
)
def test_each_remedy_is_named_where_it_applies(change, said):
    assert said in advice(0.3, replace(GOOD, **change))
    if change:
        assert said not in advice(0.3, GOOD)


def test_it_is_said_once_and_not_about_the_start(tmp_path):
    catalog = open_catalog(write_records(tmp_path / "a.rec", [0, 1], 32))
    loader = build_loader(
        catalog, batch_size=1, image_size=32, num_threads=1, device=torch.device("cpu")
    )
    assert loader.advise(0.9) is None
    assert loader.advise(0.01) is None
    assert "30% of the time" in loader.advise(0.3)
    assert loader.advise(0.3) is None
