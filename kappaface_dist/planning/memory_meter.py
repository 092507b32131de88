"""Follows the bytes of the tensors that are alive, also of fake ones that take no memory."""

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class MemoryMeter(TorchDispatchMode):
    """Context; counts each storage that an operator makes in it, from its birth to its death.

    What a kernel takes inside itself and gives back is not seen. On a GPU the backward pass runs in
    another thread and is not seen either: ask its allocator instead.

    Args:
        device_type: count what lies there alone; None: everywhere.

    Attributes:
        live_bytes: of the storages made in here that are alive.
        peak_bytes: the most of them since the start or the last `reset_peak`.
        label: whatever is made from now on belongs to it.
        peak_of: the most bytes of each label at a time.
    """

    def __init__(self, device_type: str | None = None) -> None:
        super().__init__()
        self._device_type = device_type
        self.live_bytes = 0
        self.peak_bytes = 0
        self.label = ""
        self.peak_of: Counter[str] = Counter()
        self._live_of: Counter[str] = Counter()
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(storage) for storage in storages((args, kwargs))}
        # A fake tensor's storage does not know where it would lie.
        for storage in storages(out, self._device_type):
            if id(storage) not in given and id(storage) not in self._alive:
                self._add(storage)
        return out

    def reset_peak(self) -> None:
        self.peak_bytes = self.live_bytes

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes, label = id(storage), storage.nbytes(), self.label

        def died(_: weakref.ref) -> None:
            self._alive.pop(key)
            self.live_bytes -= num_bytes
            self._live_of[label] -= num_bytes

        self._alive[key] = weakref.ref(storage, died)
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self._live_of[label] += num_bytes
        self.peak_of[label] = max(self.peak_of[label], self._live_of[label])


def storages(tree: Any, device_type: str | None = None) -> list[torch.UntypedStorage]:
    """The storages of all tensors in nested containers, or of those on such a device."""
    return [
        leaf.untyped_storage()
        for leaf in tensors_in(tree)
        if device_type is None or leaf.device.type == device_type
    ]


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """All tensors in nested tuples, lists and dicts; several times as fast as torch's tree_leaves,
    which every operator would pay for.
    """
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        return []
    return [tensor for part in tree for tensor in tensors_in(part)]


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind tensors, each storage once."""
    found = {id(s): s for s in storages(list(tensors))}
    return sum(storage.nbytes() for storage in found.values())
