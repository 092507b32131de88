"""The configurations for what people train: each fits where it says, and can be built."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kappaface_dist.backbones import build_backbone
from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.file import load_config
from kappaface_dist.head.heads import heads_by_name
from kappaface_dist.models.export import save_backbone
from kappaface_dist.planning.backbone_memory import backbone_items
from kappaface_dist.planning.job_size import size_of_datasets
from kappaface_dist.planning.memory import head_items
from kappaface_dist.planning.plan import USABLE_SHARE
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.planning.step_time import DEVICES
from kappaface_dist.planning.teacher import teacher_items
from kappaface_dist.training.build import new_network
from kappaface_dist.training.distillation import build_distiller
from kappaface_dist.training.heads import build_heads
from tests.commands import ROOT

# The authors' numbers: identities, images; of each dataset.
SHAPES = {
    "ms1mv2": [(85_742, 5_822_653)],
    "ms1mv3": [(93_431, 5_179_510)],
    "glint360k": [(360_232, 17_091_657)],
    "webface4m": [(205_990, 4_235_242)],
    "webface12m": [(617_970, 12_720_066)],
    "webface42m": [(2_059_906, 42_474_557)],
    "finetune": [(10_000, 400_000)],
    "union": [(360_232, 17_091_657), (205_990, 4_235_242)],
}
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*_*.yaml"))


# Planned by hand (configs/README.md has what came out): half a minute in all.
LARGE = ("r200", "vit_b")
KNOWN = {}


def network_memory(config, ranks, kind):
    """Of a network once, as counting a large one takes seconds."""
    section = config.optimizer
    key = (repr(config.backbone), config.precision, config.data.batch_size, section.accumulate)
    key += (section.name, section.clip_norm, ranks > 1, config.distill.model, kind)
    if key not in KNOWN:
        KNOWN[key] = backbone_items(config, ranks, kind)
    return KNOWN[key]


def num_ranks(name):
    """Of the command in the first line."""
    words = (ROOT / f"configs/{name}.yaml").read_text().splitlines()[0].replace("=", " ").split()
    nodes = int(words[words.index("--nnodes") + 1]) if "--nnodes" in words else 1
    return nodes * int(words[words.index("--nproc_per_node") + 1])


def write_teacher(path, config):
    """A network such as the recipe's teacher is, of random weights."""
    network = build_backbone("r50", embedding_size=512, image_size=config.data.image_size)
    save_backbone(path, network, name="r50", embedding_size=512, image_size=config.data.image_size)
    return path


def test_each_dataset_has_its_configurations():
    assert {name.split("_")[0] for name in (*CONFIGS, "glint360k")} == set(SHAPES)


@pytest.mark.parametrize("name", [*CONFIGS, "glint360k"])
def test_it_fits_and_can_be_built(name, tmp_path):
    shapes = SHAPES[name.split("_")[0]]
    ranks = num_ranks(name)
    config = load_config(ROOT / f"configs/{name}.yaml")
    counts = [np.full(classes, images // classes) for classes, images in shapes]
    gpu = {"finetune_r50": "v100-16", "finetune_cpu": "cpu"}.get(name, "a100-40")
    with pretend_ranks(ranks):
        if config.distill.model:
            teacher = write_teacher(tmp_path / "teacher.safetensors", config)
            config = replace(config, distill=replace(config.distill, model=str(teacher)))
        size = size_of_datasets(shapes, ranks)
        if config.backbone.name not in LARGE:
            kind = DEVICES[gpu].kind
            memory = network_memory(config, ranks, kind) | head_items(config, size, kind)
            memory |= teacher_items(config)
            total = sum(memory.values())
            assert total <= USABLE_SHARE * DEVICES[gpu].memory_bytes, f"{total:.3g} B on {gpu}"
            assert ("teacher" in memory) == (config.distill.model is not None)
            assert bool(build_distiller(config, torch.device("cpu"))) == ("teacher" in memory)
        by_name = dict(zip(datasets(config), counts, strict=True))
        heads = heads_by_name(build_heads(config, by_name, torch.device("cpu"))).values()
        assert [len(head.classes) for head in heads] == [-(-n // ranks) for n, _ in shapes]
    # Parameters with shapes and no numbers: which network it is, and what the plan has counted.
    with torch.device("meta"):
        network = new_network(config)
    size = sum(p.numel() for p in network.parameters())
    if config.backbone.name not in LARGE:
        assert 4 * size <= memory["backbone_parameters"] < 4.1 * size
