"""Counts the collectives that really run, DDP's among them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# c10d's operators by what they are called; the tensor that they send is the argument given here.
NAMES = {
    "allreduce_": ("all_reduce", 0),
    "_allgather_base_": ("all_gather", 1),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "broadcast_": ("broadcast", 0),
}


@dataclass(frozen=True)
class Call:
    """One collective of this rank.

    Attributes:
        num_bytes: of the tensor that this rank hands in.
    """

    name: str
    num_bytes: int


class CountCollectives(TorchDispatchMode):
    """Context; `calls` holds the collectives that this thread started in it, in order.

    On a GPU the backward pass, and DDP's collectives with it, runs in another thread and is not
    seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        namespace, _, operator = func.name().partition("::")
        if namespace == "c10d":
            name, place = NAMES.get(operator, (operator, 0))
            sent = args[place]
            tensors = [sent] if isinstance(sent, torch.Tensor) else list(sent)
            self.calls.append(Call(name, sum(t.numel() * t.element_size() for t in tensors)))
        return func(*args, **(kwargs or {}))


def bytes_by_name(calls: list[Call]) -> dict[str, int]:
    """Bytes handed in, summed by the collective's name."""
    total: dict[str, int] = {}
    for call in calls:
        total[call.name] = total.get(call.name, 0) + call.num_bytes
    return total
