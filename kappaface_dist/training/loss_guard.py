"""Watches the loss, and says why it is not finite.

On a GPU looking at a loss would stall it, so it is looked at some steps later, when the training
looks at its numbers anyway. By then its batch is gone, and what was wrong with it has spread into
every weight: what tells the cause is kept on the device, of the first such loss alone.
Shapes: B images on this rank, X in all micro-batches so far, H W image size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from kappaface_dist.config.datasets import called
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.head.checks import (
    BatchEvidence,
    all_finite,
    first_true,
    wrong_embedding,
    wrong_label,
)
from kappaface_dist.head.heads import heads_by_name
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import Learner


class NonFiniteLoss(ValueError):
    """The loss of a step is not finite.

    Attributes:
        position: of the step in the stream of images.
    """

    def __init__(self, message: str, position: int):
        super().__init__(message)
        self.position = position


class Evidence(NamedTuple):
    """What tells why a loss is not finite.

    Attributes:
        position: of its step in the stream of images; the same on every rank, as the loss is.
        is_nan: 1 if it is NaN, 0 if it is infinite.
        image_place: of this rank's first image in the step that is not finite, or -1.
        sound_weights: 1 if all weights of this rank's backbone are finite.
        batches: of the batch that each head saw.
    """

    position: int
    is_nan: int
    image_place: int
    sound_weights: int
    batches: tuple[BatchEvidence, ...]


class LossGuard:
    """Keeps the evidence of the first loss that is not finite.

    Args:
        late: losses are looked at some steps later, and watching must not wait for the device;
            otherwise at once, and only a bad one is examined.
    """

    def __init__(self, learner: Learner, *, late: bool):
        self.learner, self.late = learner, late
        self.reset()

    def reset(self) -> None:
        """Forget what was seen."""
        num_numbers = len(heads_by_name(self.learner.head)) * len(BatchEvidence.__annotations__)
        num_numbers += len(Evidence.__annotations__) - 1
        self._first_bad = torch.full((num_numbers,), -1, device=self.learner.device)

    @torch.no_grad()
    def watch(self, loss: torch.Tensor, position: int, batches: Sequence[Batch]) -> None:
        """Take note of a loss of the step at position, before anything is changed.

        Examining takes about 15 small kernels, and one pass over the images and the weights.

        Args:
            batches: the micro-batches that the head has seen in this step.
        """
        if not self.late and loss.isfinite():
            return
        largest_X = torch.cat([_largest(batch.image_B3HW) for batch in batches])
        weights = nn.utils.get_total_norm(_weights(self.learner.network).values(), torch.inf)
        numbers = [
            torch.full_like(loss, position, dtype=torch.int64),
            loss.isnan().long(),
            first_true(~largest_X.isfinite()),
            weights.isfinite().long(),
        ]
        heads = heads_by_name(self.learner.head).values()
        found = [head.batch_evidence() for head in heads]
        evidence = torch.cat([torch.stack(numbers), *found])
        is_first = (self._first_bad[0] < 0) & ~loss.isfinite()
        self._first_bad = torch.where(is_first, evidence, self._first_bad)

    def first_bad(self) -> Evidence | None:
        """The evidence of the first such loss; waits for the device."""
        position, is_nan, image_place, sound_weights, *found = self._first_bad.tolist()
        if position < 0:
            return None
        size = len(BatchEvidence.__annotations__)
        batches = (BatchEvidence(*found[i : i + size]) for i in range(0, len(found), size))
        return Evidence(position, is_nan, image_place, sound_weights, tuple(batches))


def likely_cause(learner: Learner, evidence: Evidence, lr: float) -> str:
    """Why a loss is not finite, in words; collective.

    Looks at the input, the labels, the weights, the embeddings and the centres, in the order in
    which one spoils the next.

    Args:
        lr: of its step.
    """
    # The first suspect of any rank: a later one may only be its consequence.
    return min(parallel.gather_objects(_own_cause(learner, evidence, lr)))[1]


@torch.no_grad()
def _own_cause(learner: Learner, evidence: Evidence, lr: float) -> tuple[int, str]:
    where = f"of rank {parallel.rank()}"
    heads = heads_by_name(learner.head)
    remedy = f"the learning rate ({lr:.3g}) may be too high: lower optimizer.lr or warm up longer"
    if evidence.image_place >= 0:
        return 0, f"input: image {evidence.image_place} of the batch {where} is not finite"
    for (name, head), batch in zip(heads.items(), evidence.batches, strict=True):
        if batch.label_place >= 0:
            text = wrong_label(batch.label_place, batch.label, batch.num_images, head.num_classes)
            return 1, f"label: {_of(name)}{text}"
    if not evidence.sound_weights:
        # The first by name; where the loss is looked at late, others may have been before it.
        spoiled = (name for name, t in _weights(learner.network).items() if not t.isfinite().all())
        name = next(spoiled)
        return 2, f"learning rate: backbone {name} {where} is not finite any more; {remedy}"
    for name, batch in zip(heads, evidence.batches, strict=True):
        if batch.embedding_place < 0:
            continue
        sentence = _of(name) + wrong_embedding(batch.embedding_place, batch.num_images)
        if learner.config.precision == "fp16":
            return 3, f"precision: {sentence}; activations overflow in fp16: set precision=bf16"
        return 3, f"learning rate: {sentence} though the weights are finite; {remedy}"
    # From sound centres the loss becomes infinite at most, and only then NaN with its gradient.
    for name, head in heads.items():
        if evidence.is_nan and not all_finite(head.weight_KD):
            text = f"learning rate: {_of(name)}the class centres {where} is not finite any more"
            return 4, f"{text}; {remedy}"
    scales = ", ".join(f"{_of(name)}{head.margin.scale:g}" for name, head in heads.items())
    return 5, (
        f"scale: embeddings, centres and labels are sound; the logits overflow: margin.scale is"
        f" {scales}, and {remedy}"
    )


def _of(name: str) -> str:
    """In front of what is said of one of several datasets."""
    return f"{called(name)}: " if name else ""


def _largest(x: torch.Tensor) -> torch.Tensor:
    """The largest absolute value of each row, NaN where one is NaN; in one pass, without a copy."""
    return torch.linalg.vector_norm(x, torch.inf, dim=tuple(range(1, x.ndim)))


def _weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """What the embeddings depend on: in training not the running statistics, which they spoil."""
    tensors: dict[str, torch.Tensor] = dict(network.named_parameters())
    if not network.training:
        tensors |= {n: t for n, t in network.named_buffers() if t.is_floating_point()}
    return tensors
