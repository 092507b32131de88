"""A save in pieces of rows, within so much host memory, while the tensors change."""

import threading

import pytest
import torch

from kappaface_dist.checkpoint import pieces
from kappaface_dist.checkpoint import tensors as checkpoint
from kappaface_dist.checkpoint.index import read_metadata
from kappaface_dist.checkpoint.pieces import HostCopies, PiecePlanner, copy_bytes, row_ranges
from kappaface_dist.checkpoint.saver import Saver
from kappaface_dist.planning.memory_meter import MemoryMeter

K, D = 1000, 16


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Of 16 rows of D numbers."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1024)


def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(K, D, generator=generator),
        "count": torch.arange(K),
        "number": torch.tensor(7.5),
        "empty": torch.zeros(0, D),
    }


def read(folder):
    found = {name: torch.zeros_like(tensor) for name, tensor in state().items()}
    checkpoint.load(folder, found, {}, K)
    return found


def test_pieces_cover_every_row_once_and_are_as_large_as_they_may():
    assert row_ranges((K, D), 4)[:2] == [(0, 16), (16, 32)]
    for shape, size in (
        ((K, D), 4),
        ((7,), 4),
        ((), 8),
        ((0, 3), 4),
        ((3, 10_000), 4),
        ((513,), 2),
    ):
        ranges = row_ranges(shape, size)
        rows = [row for first, last in ranges for row in range(first, last)]
        assert rows == list(range(shape[0] if shape else 1))


@pytest.mark.parametrize("num_bytes", [1, 2, 3, 1024, 1025, 25_600_000_000])
def test_pinned_memory_is_rounded_up(num_bytes):
    """torch 2.13, CachingHostAllocator: c10::llvm::PowerOf2Ceil."""
    size = copy_bytes(num_bytes, pinned=True)
    assert size >= num_bytes > size // 2
    assert bin(size).count("1") == 1
    assert copy_bytes(num_bytes, pinned=False) == num_bytes


@pytest.mark.parametrize("limit", [None, 0, 1024, 40_000])
def test_what_is_written_is_the_moment_of_the_save(limit, tmp_path):
    """The tensors are spoiled as soon as the training may go on."""
    saver = Saver(tmp_path, keep=1, best=None, asynchronous=True, host_bytes=limit)
    tensors = state()
    saver.save(1, {}, tensors, K, {"metrics": {}})
    for tensor in tensors.values():
        tensor.zero_()
    saver.finish()
    assert saver.copies.room.num_bytes <= (limit if limit is not None else 10**9)
    assert (saver.copies.room.left_bytes > 0) == (limit is not None)
    found = read(tmp_path / "step_00000001")
    assert all(torch.equal(found[name], tensor) for name, tensor in state().items())
    places = read_metadata(tmp_path / "step_00000001").storage_data
    assert sum(key.fqn == "weight" for key in places) == -(-K // 16)


def test_a_save_takes_no_more_host_memory_than_it_may(tmp_path):
    saver = Saver(tmp_path, keep=1, best=None, asynchronous=True, host_bytes=8 * 1024)
    tensors = state()
    saver.reserve(tensors)
    with MemoryMeter() as meter:
        taken = saver.copies.take(tensors)
    assert meter.peak_bytes == 0  # reserved before
    assert sum(piece.nbytes for piece in taken.values()) == saver.copies.room.num_bytes <= 8 * 1024
    planner = PiecePlanner(taken)
    with MemoryMeter() as meter:
        checkpoint.write(tmp_path / "step_2", tensors, {}, None, planner)
    assert planner.all_read.is_set()
    # One piece, and one of each tensor that torch's writer still holds.
    assert meter.peak_bytes <= 4 * 1024


def test_the_training_waits_until_the_last_piece_without_a_copy_was_read(tmp_path, monkeypatch):
    """And no longer: the copies are still to be written then."""
    may_write, order = threading.Event(), []
    real = PiecePlanner.resolve_data

    def resolve(planner, item):
        copied = planner._copy(item) is not None
        if copied:
            assert may_write.wait(30)
        order.append(copied)
        return real(planner, item)

    monkeypatch.setattr(PiecePlanner, "resolve_data", resolve)
    saver = Saver(tmp_path, keep=1, best=None, asynchronous=True, host_bytes=30_000)
    saver.save(1, {}, state(), K, {"metrics": {}})
    assert order == [False] * len(order)
    assert order
    may_write.set()
    saver.finish()
    assert order == sorted(order)
    assert True in order


def test_a_write_that_fails_lets_the_training_go_on(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(PiecePlanner, "resolve_data", fail)
    saver = Saver(tmp_path, keep=1, best=None, asynchronous=True, host_bytes=0)
    saver.save(1, {}, state(), K, {"metrics": {}})
    with pytest.raises(RuntimeError, match="No space left"):
        saver.finish()


def test_copies_without_a_limit_are_of_everything():
    copies = HostCopies()
    taken = copies.take(state())
    assert sum(piece.nbytes for piece in taken.values()) == copies.room.num_bytes
    assert copies.room.left_bytes == 0
