"""Passes of several heads side by side: what all of them want exchanged goes in one collective.

A pass is a generator: it yields each tensor [G, ...] that is to be reduced over the ranks, and is
handed the result. Nothing in it is collective, so a head is the same alone and beside others.
Shapes: G images of one head on all ranks.
"""

from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

import torch

from kappaface_dist.parallel import ranks as parallel

T = TypeVar("T")
# In the order in which a pass comes to them; one that a margin has no use for is left out.
COSINES, PEAKS, SUMS, NEAREST = "cosines", "peaks", "sums", "nearest"
REDUCTIONS = {
    COSINES: parallel.all_reduce_sum,
    PEAKS: parallel.all_reduce_max,
    SUMS: parallel.all_reduce_sum,
    NEAREST: parallel.all_reduce_max,
}


class Exchange(NamedTuple):
    """A tensor [G, ...] to be reduced, in place where no other goes with it; the kind says how."""

    kind: str
    part: torch.Tensor


Pass = Generator[Exchange, torch.Tensor, T]


def run_together(passes: Sequence[Pass[T]]) -> list[T]:
    """What the passes return, each exchange that several wait for made once. Collective."""
    waiting: dict[int, Exchange] = {}
    results: dict[int, T] = {}

    def go_on(number: int, reduced: torch.Tensor | None) -> None:
        try:
            # A generator that has not begun takes None alone.
            waiting[number] = passes[number].send(reduced)  # type: ignore[arg-type]
        except StopIteration as end:
            results[number] = end.value

    for number in range(len(passes)):
        go_on(number, None)
    while waiting:
        kind = next(k for k in REDUCTIONS if any(one.kind == k for one in waiting.values()))
        here = [number for number, one in waiting.items() if one.kind == kind]
        parts = [waiting.pop(number).part for number in here]
        reduced = REDUCTIONS[kind](parts[0] if len(parts) == 1 else torch.cat(parts))
        for number, part in zip(here, reduced.split([len(part) for part in parts]), strict=True):
            go_on(number, part)
    return [results[number] for number in range(len(passes))]
