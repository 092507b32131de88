"""Follows the bytes of the tensors that are alive, also of fake ones that take no memory."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryMeter(TorchDispatchMode):
    """Context; counts each storage that an operator makes in it, from its birth to its death.

    What a kernel takes inside itself and gives back is not seen. On a GPU the backward pass runs in
    another thread and is not seen either: ask its allocator instead.

    Attributes:
        live_bytes: of the storages made in here that are alive.
        peak_bytes: the most of them since the start or the last `reset_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(storage) for storage in storages((args, kwargs))}
        for storage in storages(out):
            if id(storage) not in given and id(storage) not in self._alive:
                self._add(storage)
        return out

    def reset_peak(self) -> None:
        self.peak_bytes = self.live_bytes

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = id(storage), storage.nbytes()

        def died(_: weakref.ref) -> None:
            self._alive.pop(key)
            self.live_bytes -= num_bytes

        self._alive[key] = weakref.ref(storage, died)
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def storages(tree: Any) -> list[torch.UntypedStorage]:
    """The storages of all tensors in nested containers."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind tensors, each storage once."""
    found = {id(s): s for s in storages(list(tensors))}
    return sum(storage.nbytes() for storage in found.values())
