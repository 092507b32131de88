"""What every margin shares: the target cosine t goes in, the target logit T and its slope come out.

Shapes: G images on all ranks.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch

# Small tensors by name, equal on all ranks; part of a checkpoint.
MarginState = dict[str, torch.Tensor]
# Of the images of a batch, by name: "epoch", int8, how many epochs later than the present one each
# image is; those below 0 have been seen before, or stand in for another, and do not count; without
# it all are of this epoch. "slot", int32, the number of each image in its class.
Marks = dict[str, torch.Tensor]


class Negatives(Protocol):
    """A margin's change of the other classes' logits, applied chunk by chunk in both passes."""

    def transform(self, logit_GR: torch.Tensor) -> torch.Tensor:
        """Change the logits s·cos θ_j in place; returns d new / d old. −∞ stays."""


@dataclass(frozen=True)
class Images:
    """What a margin may know of the images of the global batch.

    Attributes:
        cosine_G: target cosines t; only of images whose class is on this rank, unless the margin
            `needs_all_cosines`.
        margin_G: the margin of each image's class, where the class is on this rank.
        norm_G: lengths of the embeddings before normalisation; None unless the margin `uses_norm`.
        seed: of this step, equal on all ranks.
        number_G: each image's number in the step, the same however many micro-batches it is cut
            into; None: in their order from 0.
        learning: whether the loss will be differentiated; otherwise nothing random is added.
    """

    cosine_G: torch.Tensor
    margin_G: torch.Tensor
    norm_G: torch.Tensor | None = None
    seed: int = 0
    number_G: torch.Tensor | None = None
    learning: bool = True


class TargetLogit(NamedTuple):
    """T, dT/dt, and dT/d‖embedding‖ where T depends on that length."""

    logit_G: torch.Tensor
    slope_G: torch.Tensor
    norm_slope_G: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Margin:
    """The settings and hooks of a margin; most margins need only `target_logit`.

    Attributes:
        scale: s.
        straight_through: take dT/dt = s, as trainers do that apply the margin outside autograd. The
            default is the exact derivative.
    """

    scale: float = 64.0
    straight_through: bool = False

    uses_norm: ClassVar[bool] = False
    # Bound of all logits in units of s: 1 unless `negatives` exceeds it.
    largest_cosine: ClassVar[float] = 1.0

    @property
    def needs_all_cosines(self) -> bool:
        """Whether every rank must know the target cosines of all images.

        Only the owner of a class can compute them: it costs one more all-reduce of [G] a step.
        """
        return False

    @property
    def class_margin(self) -> float:
        """The margin that every class starts with."""
        return 0.0

    def init_state(self) -> dict[str, float]:
        """Starting values of what the margin remembers between steps."""
        return {}

    def observe(self, images: Images, state: MarginState) -> None:
        """Update the state in place, once a step, from all images that it learnt from.

        The logits of a step are those of the state before it.
        """

    def target_logit(self, images: Images, state: MarginState) -> TargetLogit:
        """T and its derivatives. T must be continuous and never rise with the angle."""
        raise NotImplementedError

    def negatives(self, images: Images, state: MarginState) -> Negatives | None:
        """How the other classes' logits change, if they do."""
        return None

    def penalty(self, norm_G: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A term that each image adds to the loss, with its derivative by the norm, if any."""
        return None


def target_logit(margin: Margin, images: Images, state: MarginState) -> TargetLogit:
    """The margin's target logit, with the slope that its settings ask for."""
    target = margin.target_logit(images, state)
    if margin.straight_through:
        return TargetLogit(target.logit_G, torch.full_like(target.slope_G, margin.scale))
    return target


def require(ok: bool, field: str, value: Any, constraint: str) -> None:
    """Raise ValueError with the setting, its value and the constraint, unless ok."""
    if not ok:
        raise ValueError(f"margin.{field} is {value!r}: {constraint}")
