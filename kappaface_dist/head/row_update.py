"""Optimizers that update a chunk of class centres at a time, as the second pass hands them out.

Rows that a step does not touch (sample rate below 1) keep their centre and their state: neither
momentum nor weight decay acts on them. A class's history is thus that of the steps it took part in.
Shapes: R rows of one chunk, D embedding size.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

RowState = dict[str, torch.Tensor]


class RowOptimizer(Protocol):
    """Settings and formula of an optimizer whose state lives in the head, by class."""

    def init_state(self, weight_KD: torch.Tensor) -> RowState:
        """State for all rows, keyed by name; the first dimension of each tensor is the class."""

    def update(
        self, weight_RD: torch.Tensor, gradient_RD: torch.Tensor, state: RowState, lr: float
    ) -> None:
        """One step on R rows, in place; `state` holds the same rows. gradient_RD may be changed."""


@dataclass(frozen=True)
class SGDRows:
    """torch.optim.SGD without dampening: m ← μ m + g + λ w;  w ← w − lr m."""

    momentum: float = 0.9
    weight_decay: float = 5e-4

    def init_state(self, weight_KD: torch.Tensor) -> RowState:
        return {"momentum": torch.zeros_like(weight_KD)} if self.momentum else {}

    def update(
        self, weight_RD: torch.Tensor, gradient_RD: torch.Tensor, state: RowState, lr: float
    ) -> None:
        if self.weight_decay:
            gradient_RD.add_(weight_RD, alpha=self.weight_decay)
        if self.momentum:
            gradient_RD = state["momentum"].mul_(self.momentum).add_(gradient_RD)
        weight_RD.add_(gradient_RD, alpha=-lr)


@dataclass(frozen=True)
class AdamWRows:
    """torch.optim.AdamW (Loshchilov & Hutter, ICLR 2019), with a step count for each row.

    A row's bias correction counts the steps that touched it.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01

    def init_state(self, weight_KD: torch.Tensor) -> RowState:
        return {
            "mean": torch.zeros_like(weight_KD),
            "square": torch.zeros_like(weight_KD),
            "steps": torch.zeros(len(weight_KD), dtype=torch.int32, device=weight_KD.device),
        }

    def update(
        self, weight_RD: torch.Tensor, gradient_RD: torch.Tensor, state: RowState, lr: float
    ) -> None:
        steps_R1 = state["steps"].add_(1)[:, None].to(weight_RD.dtype)
        weight_RD.mul_(1.0 - lr * self.weight_decay)
        mean_RD = state["mean"].lerp_(gradient_RD, 1.0 - self.beta1)
        square_RD = state["square"].mul_(self.beta2)
        square_RD.addcmul_(gradient_RD, gradient_RD, value=1.0 - self.beta2)
        root_RD = (square_RD / (1.0 - self.beta2**steps_R1)).sqrt_().add_(self.epsilon)
        weight_RD.sub_(mean_RD / root_RD * (lr / (1.0 - self.beta1**steps_R1)))
