"""A node's own memory as planned, against what a run's saver really sets aside."""

import pytest
import torch

from kappaface_dist.checkpoint import pieces
from kappaface_dist.checkpoint.optimizer_state import optimizer_tensors
from kappaface_dist.checkpoint.pieces import HostCopies
from kappaface_dist.config.keys import Backbone, Checkpoint, Config, Data
from kappaface_dist.planning.host_memory import host_memory, ranks_of_node
from kappaface_dist.planning.made_up_job import made_up_job, random_batches
from kappaface_dist.planning.memory import JobSize
from kappaface_dist.training.step import train_step

SIZE = JobSize(3000, 30_000, 1)


def configure(**checkpoint):
    return Config(
        data=Data(train="none", batch_size=4, image_size=32),
        backbone=Backbone(name="tiny", embedding_size=32),
        checkpoint=Checkpoint(**checkpoint),
    )


@pytest.fixture(scope="module")
def stored():
    """All that a checkpoint of such a run holds."""
    job = made_up_job(configure(), SIZE.num_classes, torch.device("cpu"))
    train_step(job, random_batches(job.config, SIZE.num_classes, job.device), 0.1, 0)
    replicated = dict(job.network.state_dict()) | optimizer_tensors(job.optimizer, job.network)
    return replicated, job.head.sharded_state()


@pytest.mark.parametrize("limit", [None, 0, 300_000])
def test_copies_are_as_planned(stored, limit, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1 << 16)
    copies = HostCopies(limit)
    for tensors in stored:
        copies.reserve(tensors)
    found = host_memory(configure(host_bytes=limit), SIZE, "cpu")
    assert found.items["checkpoint_copies"] == copies.room.num_bytes
    assert found.uncopied_bytes == copies.room.left_bytes


def test_without_copies_the_whole_save_is_waited_for(stored):
    found = host_memory(configure(asynchronous=False), SIZE, "cpu")
    assert found.items["checkpoint_copies"] == 0
    whole = sum(tensor.nbytes for tensors in stored for tensor in tensors.values())
    assert found.uncopied_bytes == whole


def test_pinned_copies_of_a_large_shard_waste_nothing():
    """12.5 million rows of 512 numbers: 25.6 GB, which pinned in one piece would take 34.4 GB."""
    config = Config(data=Data(train="none"), backbone=Backbone(name="tiny"))
    size = JobSize(12_500_000, 1, 1)
    found = host_memory(config, size, "cuda").items["checkpoint_copies"]
    # Centres, momentum and resultants, four vectors; of each 64 MiB may be rounding.
    needed = 12_500_000 * (3 * 512 + 4) * 4
    assert needed <= found <= needed + 8 * (64 << 20)
    assert pieces.copy_bytes(25_600_000_000, pinned=True) == 34_359_738_368


@pytest.mark.parametrize(("ranks", "expected"), [(1, 1), (8, 8), (512, 8)])
def test_ranks_of_a_node(ranks, expected):
    assert ranks_of_node(JobSize(10_000, 1, ranks)) == expected
