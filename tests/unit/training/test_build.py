"""The builders hand every setting of the configuration to the part it is for."""

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.data.sources.recordio import RecordWriter
from kappaface_dist.training.build import build_job
from kappaface_dist.training.derived import derived_numbers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    with RecordWriter(folder / "train") as writer:
        for label in range(10):
            writer.write(label % 5, encode_jpeg(np.full((32, 32, 3), 20 * label, np.uint8)))
    (folder / "config.yaml").write_text(
        "run: {epochs: 3}\n"
        f"data: {{train: {folder / 'train.rec'}, batch_size: 4, image_size: 32}}\n"
        "backbone: {name: tiny, embedding_size: 8}\n"
    )
    return folder / "config.yaml"


def build(path, *overrides):
    return build_job(load_config(path, list(overrides)), CPU)


def test_the_head_gets_its_settings(path):
    head = build(
        path,
        "head.sample_rate=0.5",
        "head.dtype=bf16",
        "head.momentum_dtype=bf16",
        "head.logit_cache_bytes=1000",
        "head.filter_threshold=0.6",
        "head.skip_mass=0.02",
        "head.fused=false",
        "margin.name=cosface",
        "margin.margin=0.2",
        "optimizer.momentum=0.7",
        "optimizer.weight_decay=0.001",
    ).head
    softmax = head.softmax
    assert (softmax.sample_rate, softmax.dtype) == (0.5, torch.bfloat16)
    assert softmax.logit_cache_bytes == 1000
    assert (softmax.filter_threshold, softmax.skip_mass) == (0.6, 0.02)
    assert head.softmax.fused == "off"
    assert head.margin.margin == 0.2
    assert (head.optimizer.momentum, head.optimizer.weight_decay) == (0.7, 0.001)
    assert head.sharded_state()["optimizer.momentum"].dtype == torch.bfloat16
    assert head.num_classes == 5


def test_the_head_gets_its_number_types(path):
    small = ["head.centre_dtype=bf16", "head.momentum_dtype=none", "optimizer.momentum=0.8"]
    head = build(path, *small).head
    assert head.weight_KD.dtype == torch.bfloat16
    assert not head.row_state
    assert (head.optimizer.momentum, head.optimizer.lr_factor) == (0.0, pytest.approx(5.0))
    adamw = ["optimizer.name=adamw", "head.second_moment=row"]
    heads = [build(path, *adamw[:count]).head for count in (1, 2)]
    assert [head.row_state["square"].shape[1] for head in heads] == [heads[0].weight_KD.shape[1], 1]


def test_the_backbone_gets_its_settings(path):
    network = build(path, "backbone.channels_last=true").network
    weight = next(p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    first, again = (build(path).network.state_dict() for _ in range(2))
    other = build(path, "run.seed=1").network.state_dict()
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_backbones_shape_is_a_setting(path):
    shape = ["backbone.depths=[1,2,1,1]", "backbone.widths=[8,8,16,16]", "backbone.dropout=0.1"]
    network = build(path, *shape, "backbone.drop_path=0.2", "backbone.checkpointing=[1]").network
    assert [len(network.get_submodule(f"layer{i}")) for i in (1, 2, 3, 4)] == [1, 2, 1, 1]
    assert network.conv1.weight.shape[0] == 8
    assert (network.dropout, network.checkpointed_stages) == (0.1, {1})
    assert network.layer4[0].drop_path_rate == 0.2
    transformer = build(
        path,
        "backbone={name: vit_t, embedding_size: 8, depths: [2], widths: [16]}",
        "backbone.mask_ratio=0.5",
    ).network
    assert (len(transformer.blocks), transformer.num_kept) == (2, 4)


def test_compiled_checkpointing_is_refused_where_torch_gets_it_wrong(path, monkeypatch):
    """Found with 2.6, 2.7 and 2.8: the running statistics count every batch twice."""
    monkeypatch.setattr(torch, "__version__", "2.8.0")
    for name in ("compile", "checkpointing"):
        build(path, f"backbone.{name}=true")
    with pytest.raises(RuntimeError, match=r"torch 2\.8\.0 then counts every batch twice"):
        build(path, "backbone.compile=true", "backbone.checkpointing=true")


def test_sync_batchnorm_says_where_it_is_missing(path):
    with pytest.raises(ValueError, match="the device is cpu and torch has it on GPUs only"):
        build(path, "backbone.sync_batchnorm=true")


def test_the_learning_rate_of_the_optimizer_is_the_peak(path):
    job = build(path, "optimizer.lr=0.1", "optimizer.reference_batch=8")
    assert {group["lr"] for group in job.optimizer.param_groups} == {0.05}


def test_derived_numbers(path):
    numbers = derived_numbers(
        build(path, "optimizer.lr=0.1", "optimizer.reference_batch=8", "head.sample_rate=0.5")
    )
    assert numbers["classes"] == 5
    assert numbers["images_per_class"] == "2 to 2"
    assert numbers["peak_lr"] == 0.05
    assert numbers["steps"] == 8
    # Of 5 classes x 8: centres, momentum, sums of embeddings; and four numbers per class.
    assert numbers["head_megabytes_per_rank"] == round(5 * (3 * 8 + 4) * 4 / 1e6, 1)
