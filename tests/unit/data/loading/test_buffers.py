"""Memory comes back when the last user is gone, and not before."""

import gc

import numpy as np
import torch

from kappaface_dist.data.loading.buffers import MAX_FREE, Buffers


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again():
    buffers = Buffers((3, 5), np.float32)
    first = buffers.take()
    assert first.shape == (3, 5)
    assert first.dtype == np.float32
    where = address(first)
    del first
    gc.collect()
    assert address(buffers.take()) == where


def test_memory_in_use_stays_untouched():
    """Any tensor or view of a tensor, and an array of one, keeps it."""
    buffers = Buffers((4, 2), np.float32)
    kept = []
    for i in range(40):
        tensor = torch.from_numpy(buffers.take())
        tensor.fill_(i)
        if i % 4 < 3:
            kept.append((i, (tensor, tensor[1:].reshape(-1), tensor.numpy()[2])[i % 4]))
        del tensor
    for i, values in kept:
        assert (values == i).all()


def test_little_is_kept():
    buffers = Buffers((1,), np.uint8)
    many = [buffers.take() for _ in range(3 * MAX_FREE)]
    del many
    gc.collect()
    assert len(buffers._free) == MAX_FREE
