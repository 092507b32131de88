"""Checkpoints by several ranks: the state of the moment, on any number of ranks, or an error."""

import os
import subprocess
import threading
from unittest import mock

import numpy as np
import pytest
import torch

from kappaface_dist.checkpoint import pieces, saver
from kappaface_dist.checkpoint import tensors as checkpoint
from kappaface_dist.checkpoint.folder import complete_checkpoints, damages
from kappaface_dist.checkpoint.saver import Saver
from kappaface_dist.head.shard import shard_classes
from kappaface_dist.parallel import ranks as parallel
from tests.processes import run_on_ranks

NUM_CLASSES = 37


def rows(step):
    """Tensors of all classes, different at every step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "weight": torch.randn(NUM_CLASSES, 8, generator=generator),
        "count": torch.arange(NUM_CLASSES, dtype=torch.int32) * step,
        "kappa": torch.full((NUM_CLASSES,), torch.nan),
    }


def own(tensors):
    shard = shard_classes(NUM_CLASSES, parallel.rank(), parallel.world_size())
    return {name: tensor[shard.start : shard.stop].clone() for name, tensor in tensors.items()}


def numbers(step):
    return {"run": {"step": step}, "metrics": {}, "world_size": parallel.world_size()}


def save(root, step, keep=2, asynchronous=True, host_bytes=None):
    """Save, and spoil the tensors at once, as the next training step does."""
    with mock.patch.object(pieces, "PIECE_BYTES", 64):  # two rows of the weight
        save_in_pieces(root, step, keep, asynchronous, host_bytes)


def save_in_pieces(root, step, keep, asynchronous, host_bytes):
    writer = Saver(root, keep=keep, best=None, asynchronous=asynchronous, host_bytes=host_bytes)
    replicated, sharded = {"bias": torch.full((5,), float(step))}, own(rows(step))
    writer.save(step, replicated, sharded, NUM_CLASSES, numbers(step))
    for tensor in (*replicated.values(), *sharded.values()):
        tensor.zero_()
    writer.finish()


def load(folder):
    replicated = {"bias": torch.zeros(5)}
    sharded = {name: torch.zeros_like(tensor) for name, tensor in own(rows(1)).items()}
    checkpoint.load(folder, replicated, sharded, NUM_CLASSES)
    return {name: tensor.numpy() for name, tensor in (replicated | sharded).items()}


@pytest.mark.parametrize(("asynchronous", "host_bytes"), [(True, None), (True, 200), (False, None)])
def test_any_number_of_ranks_reads_it_element_by_element(tmp_path, asynchronous, host_bytes):
    for step, num_ranks in enumerate((4, 2, 3, 0, 4), start=1):
        run_on_ranks(num_ranks, save, tmp_path, step, 2, asynchronous, host_bytes)
        folder = complete_checkpoints(tmp_path)[-1]
        assert folder.name == f"step_{step:08d}"
        assert damages(folder, 0, 1) == []
        for readers in {4: (2,), 2: (3,), 3: (0,), 0: (4,)}[num_ranks]:
            parts = run_on_ranks(readers, load, folder)
            assert (parts[0]["bias"] == step).all()
            for name, tensor in rows(step).items():
                found = np.concatenate([part[name] for part in parts])
                np.testing.assert_array_equal(found, tensor.numpy(), err_msg=name)
    assert len(complete_checkpoints(tmp_path)) == 2


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    may_write, real = threading.Event(), saver.write

    def slow(*args):
        assert may_write.wait(30)
        real(*args)

    monkeypatch.setattr(saver, "write", slow)
    writer = Saver(tmp_path, keep=1, best=None, asynchronous=True)
    writer.save(1, {}, own(rows(1)), NUM_CLASSES, numbers(1))
    assert not complete_checkpoints(tmp_path)
    may_write.set()
    writer.finish()
    assert len(complete_checkpoints(tmp_path)) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system needs root and mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def save_large(root, step, kilobytes, check_space):
    if not check_space:
        # Another job may fill the disk after the check.
        saver.check_free_space = lambda *_: None
    writer = Saver(root, keep=1, best=None, asynchronous=True)
    sharded = own(
        {"weight": torch.full((NUM_CLASSES, kilobytes * 250 // NUM_CLASSES), float(step))}
    )
    try:
        writer.save(step, {}, sharded, NUM_CLASSES, numbers(step))
        writer.finish()
    except RuntimeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("check_space", [True, False])
def test_a_full_disk_is_one_error_and_keeps_the_last_checkpoint(small_disk, check_space):
    assert run_on_ranks(2, save_large, small_disk, 1, 1000, check_space) == [None, None]
    errors = run_on_ranks(2, save_large, small_disk, 2, 2500, check_space)
    wanted = "MB are free: make room" if check_space else "No space left on device|could not write"
    for error in errors:
        assert error is not None
        assert any(text in error for text in wanted.split("|")), error
    assert len(error.splitlines()) == 1
    (kept,) = complete_checkpoints(small_disk)
    assert kept.name == "step_00000001"
    assert damages(kept, 0, 1) == []
    assert sorted(path.name for path in small_disk.iterdir()) == [kept.name]
    assert run_on_ranks(2, save_large, small_disk, 3, 1000, check_space) == [None, None]
    assert [path.name for path in complete_checkpoints(small_disk)] == ["step_00000003"]
    assert os.listdir(small_disk) == ["step_00000003"]
