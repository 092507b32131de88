"""Watches the loss, and says why it is not finite.

On a GPU looking at the loss would stall it: there each loss is judged on the device, and the
verdict read when the training looks at its numbers anyway.
Shapes: B images on this rank.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import Job


class NonFiniteLoss(ValueError):
    """The loss of a step is not finite.

    Attributes:
        position: of the step in the stream of images.
    """

    def __init__(self, message: str, position: int):
        super().__init__(message)
        self.position = position


class LossGuard:
    """Remembers the first step whose loss is not finite; the same on every rank, as the loss is."""

    def __init__(self, device: torch.device):
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)

    def watch(self, loss: torch.Tensor, position: int) -> None:
        """Take note of the loss of the step at position."""
        is_first = (self._first_bad < 0) & ~loss.detach().isfinite()
        self._first_bad = torch.where(is_first, position, self._first_bad)

    def first_bad(self) -> int | None:
        """The position of the first step with such a loss; waits for the device."""
        position = int(self._first_bad.item())
        return None if position < 0 else position


def likely_cause(job: Job, batches: Sequence[Batch], lr: float) -> str:
    """Why the loss of these micro-batches is not finite, in words; collective.

    Looks at the input, the labels, the weights and the embeddings, in the order in which one spoils
    the next.
    """
    with torch.no_grad():
        found = _own_cause(job, batches, lr)
    # The first suspect of any rank: a later one may only be its consequence.
    return min(parallel.gather_objects(found))[1]


def _own_cause(job: Job, batches: Sequence[Batch], lr: float) -> tuple[int, str]:
    where = f"of rank {parallel.rank()}"
    images = torch.cat([batch.image_B3HW for batch in batches])
    bad_B = ~images.flatten(1).isfinite().all(dim=1)
    if bad_B.any():
        return 0, f"input: image {int(bad_B.nonzero()[0])} of the batch {where} is not finite"
    if (sentence := job.head.explain_non_finite()) and "label" in sentence:
        return 1, f"label: {sentence}"
    remedy = f"the learning rate ({lr:.3g}) may be too high: lower optimizer.lr or warm up longer"
    for name, tensor in _weights(job).items():
        if not tensor.isfinite().all():
            return 2, f"learning rate: {name} {where} is not finite any more; {remedy}"
    if sentence is not None:
        if job.config.precision == "fp16":
            return 3, f"precision: {sentence}; activations overflow in fp16: set precision=bf16"
        return 3, f"learning rate: {sentence} though the weights are finite; {remedy}"
    return 4, (
        f"scale: embeddings, centres and labels are sound; the logits overflow: margin.scale is"
        f" {job.head.margin.scale:g}, and {remedy}"
    )


def _weights(job: Job) -> dict[str, torch.Tensor]:
    network: nn.Module = job.network
    tensors: dict[str, Any] = {f"backbone {name}": t for name, t in network.state_dict().items()}
    tensors["the class centres"] = job.head.weight_KD
    return {name: t for name, t in tensors.items() if t.is_floating_point()}
