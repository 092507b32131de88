"""The backward pass without torch's engine, which fails without a GPU's context.

Every node's own backward function is called, in an order that suits, and the hooks of leaves that
have their gradient. What the forward pass saved is given back node by node, as the engine does it,
so that the most that is alive at a time is what it would be.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter, methodcaller
from typing import Any
from unittest import mock

import torch

# What a node of torch's graph takes: shapes, types and devices.
inputs_of = attrgetter("_input_metadata")
place_of = methodcaller("_sequence_nr")  # when it was made
hooks_of = attrgetter("_post_accumulate_grad_hooks")


class _Saved:
    """What a node has saved, until it has been used."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor: torch.Tensor | None = tensor.detach()


_used: list[_Saved] = []


def _use(saved: _Saved) -> torch.Tensor:
    assert saved.tensor is not None, "a second backward pass through the same graph"
    _used.append(saved)
    return saved.tensor


@contextmanager
def backward_passes() -> Iterator[None]:
    """Inside, Tensor.backward is `backward`."""
    with (
        mock.patch.object(torch.Tensor, "backward", backward),
        torch.autograd.graph.saved_tensors_hooks(_Saved, _use),
    ):
        yield


@torch.no_grad()
def backward(tensor: torch.Tensor, gradient: torch.Tensor | None = None, **_: Any) -> None:
    """Tensor.backward: add to the gradient of every leaf that tensor depends on."""
    root = tensor.grad_fn
    assert root is not None, "backward() of a tensor that depends on nothing to be learnt"
    number_of: Counter[Any] = Counter()
    stack, met = [root], {root}
    while stack:
        for child, _number in stack.pop().next_functions:
            if child is not None:
                number_of[child] += 1
                if child not in met:
                    met.add(child)
                    stack.append(child)
    sums: dict[Any, dict[int, torch.Tensor]] = {
        root: {tensor.output_nr: torch.ones_like(tensor) if gradient is None else gradient}
    }
    ready: list[Any] = [root]
    while ready:
        # As the engine: gradients of leaves at once, otherwise what was made last.
        node = max(ready, key=_precedence)
        ready.remove(node)
        given = sums.pop(node, {})
        if hasattr(node, "variable"):
            if given:
                _accumulate(node.variable, given[0])
            continue
        results = list(_call(node, given) if given else (None,) * len(node.next_functions))
        for place, (child, number) in enumerate(node.next_functions):
            if child is None:
                continue
            # Not held any longer than it is needed.
            result, results[place] = results[place], None
            if result is not None:
                result = _fitted(result, inputs_of(child)[number])
                own = sums.setdefault(child, {})
                own[number] = own[number] + result if number in own else result
            number_of[child] -= 1
            if not number_of[child]:
                ready.append(child)
        result = None
        del given, results


def _precedence(node: Any) -> float:
    return math.inf if hasattr(node, "variable") else place_of(node)


def _call(node: Any, given: dict[int, torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    metadata = inputs_of(node)
    gradients = [
        given[i] if i in given else torch.zeros(m.shape, dtype=m.dtype, device=m.device)
        for i, m in enumerate(metadata)
    ]
    written_in_python = isinstance(node, torch.autograd.function.BackwardCFunction)
    _used.clear()
    results = node.apply(*gradients) if written_in_python else node(*gradients)
    for saved in _used:
        saved.tensor = None
    return results if isinstance(results, tuple) else (results,)


def _fitted(gradient: torch.Tensor, wanted: Any) -> torch.Tensor:
    """Summed over what was broadcast, and in the type of what it is the gradient of."""
    assert gradient.device == wanted.device, f"a gradient on {gradient.device} of {wanted.device}"
    if gradient.shape != wanted.shape:
        gradient = gradient.sum_to_size(wanted.shape)
    return gradient.to(wanted.dtype)


def _accumulate(leaf: torch.Tensor, gradient: torch.Tensor) -> None:
    if leaf.grad is None:
        leaf.grad = gradient.detach()
    else:
        leaf.grad += gradient
    for hook in (hooks_of(leaf) or {}).values():
        hook(leaf)
