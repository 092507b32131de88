"""A first configuration: it loads, fits, and says why."""

import re

import numpy as np
import pytest
import yaml

from kappaface_dist.config.file import load_config
from kappaface_dist.planning.first_config import Dataset, as_yaml, choose, planned_memory
from kappaface_dist.planning.this_machine import Machine, machine_of

CPU = Machine(0, "", 16_000_000_000, "fp32", 2)


def dataset(num_classes, photos=40, sets=None):
    return Dataset("data/mine/train.rec", np.full(num_classes, photos), sets or {})


def chosen(data, machine, tmp_path):
    choices, memory = choose("mine", data, machine)
    path = tmp_path / "mine.yaml"
    path.write_text(as_yaml(choices, "a heading"))
    return load_config(path), choices, memory, path.read_text()


def test_a_small_set_on_a_cpu(tmp_path):
    data = dataset(300, photos=10, sets={"unseen": "data/mine/unseen.bin"})
    config, choices, memory, text = chosen(data, CPU, tmp_path)
    assert (config.backbone.name, config.precision) == ("tiny", "fp32")
    assert config.data.train == "data/mine/train.rec"
    assert config.evaluate.sets == {"unseen": "data/mine/unseen.bin"}
    assert sum(memory.values()) < CPU.memory_bytes
    # Every key has its reason right above it.
    lines = text.splitlines()
    for choice in choices:
        key = choice.key.rpartition(".")[2]
        places = [i for i, line in enumerate(lines) if re.match(rf"\s*{key}:", line)]
        assert places, key
        assert all(lines[place - 1].strip().startswith("# ") for place in places), key
    assert all(len(line) <= 100 for line in lines)


def test_the_largest_batch_that_fits_is_taken(tmp_path):
    big = machine_of("h100", 8)
    config, _, _, _ = chosen(dataset(93_431, photos=55), big, tmp_path)
    assert (config.backbone.name, config.data.batch_size) == ("r50", 128)
    small = Machine(1, "small", 6_000_000_000, "fp16", 8)
    config, choices, memory, _ = chosen(dataset(93_431, photos=55), small, tmp_path)
    assert config.data.batch_size < 128
    assert config.precision == "fp16"
    assert sum(memory.values()) <= 0.92 * small.memory_bytes
    doubled = [
        c if c.key != "data.batch_size" else type(c)(c.key, 2 * c.value, c.why) for c in choices
    ]
    more = planned_memory(doubled, dataset(93_431, photos=55), small)
    assert sum(more.values()) > 0.92 * small.memory_bytes


def test_few_photos_make_small_batches(tmp_path):
    config, _, _, _ = chosen(dataset(60, photos=10), CPU, tmp_path)
    assert config.data.batch_size == 16  # 37 steps; 32 would leave 18
    config, _, _, _ = chosen(dataset(8, photos=4), CPU, tmp_path)
    assert config.data.batch_size == 8


def test_millions_of_identities_are_sampled(tmp_path):
    config, _, _, _ = chosen(dataset(2_000_000, photos=21), machine_of("a100-40", 8), tmp_path)
    assert config.head.sample_rate == 0.2
    assert config.backbone.name == "r100"


def test_one_photo_a_person_is_said(tmp_path):
    count_C = np.array([1] * 7 + [9] * 93)
    _, _, _, text = chosen(Dataset("x", count_C, {}), CPU, tmp_path)
    assert "7 identities have one photo" in " ".join(text.replace("#", " ").split())


def test_odd_paths_stay_what_they_are(tmp_path):
    path = "photos: of #1 [mine]/träin.rec"
    choices, _ = choose("1e3", Dataset(path, np.full(40, 5), {"a b": "x: y.bin"}), CPU)
    read = yaml.safe_load(as_yaml(choices))
    assert read["data"]["train"] == path
    assert read["run"]["name"] == "1e3"
    assert read["evaluate"]["sets"] == {"a b": "x: y.bin"}


@pytest.mark.parametrize(("gpu", "number"), [("h999", 1), ("h100", 0)])
def test_no_such_machine(gpu, number):
    with pytest.raises(ValueError, match="--gpu"):
        machine_of(gpu, number)
