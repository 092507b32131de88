"""The backward pass without torch's engine, which fails without a GPU's context.

Every node's own backward function is called, in an order that suits; hooks are not. What the
forward pass has saved stays until the graph is dropped.
"""

from collections import Counter
from operator import attrgetter
from typing import Any

import torch

# What a node of torch's graph takes: shapes, types and devices.
inputs_of = attrgetter("_input_metadata")


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
        node = ready.pop()
        given = sums.pop(node, {})
        if hasattr(node, "variable"):
            if given:
                _accumulate(node.variable, given[0])
            continue
        results = _call(node, given) if given else (None,) * len(node.next_functions)
        for (child, number), result in zip(node.next_functions, results, strict=False):
            if child is None:
                continue
            if result is not None:
                result = _fitted(result, inputs_of(child)[number])
                own = sums.setdefault(child, {})
                own[number] = own[number] + result if number in own else result
            number_of[child] -= 1
            if not number_of[child]:
                ready.append(child)


def _call(node: Any, given: dict[int, torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    metadata = inputs_of(node)
    gradients = [
        given[i] if i in given else torch.zeros(m.shape, dtype=m.dtype, device=m.device)
        for i, m in enumerate(metadata)
    ]
    written_in_python = isinstance(node, torch.autograd.function.BackwardCFunction)
    results = node.apply(*gradients) if written_in_python else node(*gradients)
    return results if isinstance(results, tuple) else (results,)


def _fitted(gradient: torch.Tensor, wanted: Any) -> torch.Tensor:
    """Summed over what was broadcast, and in the type of what it is the gradient of."""
    assert gradient.device == wanted.device, f"a gradient on {gradient.device} of {wanted.device}"
    if gradient.shape != wanted.shape:
        gradient = gradient.sum_to_size(wanted.shape)
    return gradient.to(wanted.dtype)


def _accumulate(leaf: torch.Tensor, gradient: torch.Tensor) -> None:
    if leaf.grad is None:
        leaf.grad = gradient.detach().clone(memory_format=torch.preserve_format)
    else:
        leaf.grad += gradient
