"""Optimizers that update a chunk of class centres at a time, as the second pass hands them out.

Rows that a step does not touch (sample rate below 1) keep their centre and their state: neither
momentum nor weight decay acts on them. A class's history is thus that of the steps it took part in.
Shapes: R rows of one chunk, D embedding size.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from kappaface_dist.head.softmax.rows import split_rows
from kappaface_dist.head.softmax.second_pass import MicroBatch, TargetTerms, gradient, raw_gradients
from kappaface_dist.head.softmax.settings import Softmax

RowState = dict[str, torch.Tensor]


class RowOptimizer(Protocol):
    """Settings and formula of an optimizer whose state lives in the head, by class."""

    def init_state(self, weight_KD: torch.Tensor) -> RowState:
        """State for all rows, keyed by name; the first dimension of each tensor is the class."""

    def update(
        self, weight_RD: torch.Tensor, gradient_RD: torch.Tensor, state: RowState, lr: float
    ) -> None:
        """One step on R rows, in place; `state` holds the same rows. gradient_RD may be changed."""

    def fused_numbers(self) -> dict[str, float] | None:
        """The momentum and weight_decay with which `kernels.update_rows` computes this formula.

        It keeps state["momentum"]. None: the kernel has another formula, `update` is called.
        """


@dataclass(frozen=True)
class SGDRows:
    """torch.optim.SGD without dampening: m ← μ m + g + λ w;  w ← w − lr m.

    With momentum_dtype bfloat16 m is rounded after the centre has been updated from the full one:
    6 bytes per parameter instead of 8. None: the type of the centres.
    """

    momentum: float = 0.9
    weight_decay: float = 5e-4
    momentum_dtype: torch.dtype | None = None

    def init_state(self, weight_KD: torch.Tensor) -> RowState:
        if not self.momentum:
            return {}
        return {"momentum": torch.zeros_like(weight_KD, dtype=self.momentum_dtype)}

    def update(
        self, weight_RD: torch.Tensor, gradient_RD: torch.Tensor, state: RowState, lr: float
    ) -> None:
        if self.weight_decay:
            gradient_RD.add_(weight_RD, alpha=self.weight_decay)
        if self.momentum:
            gradient_RD.add_(state["momentum"], alpha=self.momentum)
            state["momentum"].copy_(gradient_RD)
        weight_RD.add_(gradient_RD, alpha=-lr)

    def fused_numbers(self) -> dict[str, float] | None:
        if not self.momentum:
            return None
        return {"momentum": self.momentum, "weight_decay": self.weight_decay}


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

    def fused_numbers(self) -> None:
        return None


def update_centres(
    batches: list[MicroBatch],
    softmax: Softmax,
    row_state: RowState,
    optimizer: RowOptimizer,
    lr: float,
    skip: torch.Tensor | None,
) -> None:
    """The second pass with the update of each chunk's rows.

    Args:
        batches: of one step, over the same rows.
        row_state: the optimizer's state of the whole shard.
        skip: 0-dimensional bool; where true, nothing changes. The device decides, nobody waits.
    """
    rows, targets = batches[0].rows, TargetTerms(batches)
    kernels, fused_numbers = softmax.kernels(rows.weight_KD.device), optimizer.fused_numbers()
    for first, last, chunk_RD, h_RD in raw_gradients(batches, softmax):
        if kernels is not None and fused_numbers is not None:
            momentum_RD = rows.select(row_state["momentum"], first, last)
            kernels.update_rows(
                chunk_RD,
                h_RD,
                momentum_RD,
                targets.row_X,
                targets.term_XD,
                first,
                split=rows.split,
                lr=lr,
                skip=skip,
                **fused_numbers,
            )
            rows.put_back(rows.weight_KD, first, last, chunk_RD)
            rows.put_back(row_state["momentum"], first, last, momentum_RD)
            continue
        weight_RD = rows.centres(chunk_RD)
        gradient_RD = gradient(weight_RD, h_RD, targets, first)
        state = {name: rows.select(t, first, last) for name, t in row_state.items()}
        tensors = {"weight": weight_RD, **state}
        before = {name: t.clone() for name, t in tensors.items()} if skip is not None else {}
        optimizer.update(weight_RD, gradient_RD, state, lr)
        if skip is not None:
            for name, tensor in before.items():
                tensors[name].copy_(torch.where(skip, tensor, tensors[name]))
        if rows.split:
            chunk_RD.copy_(split_rows(weight_RD))
        rows.put_back(rows.weight_KD, first, last, chunk_RD)
        for name, tensor in state.items():
            rows.put_back(row_state[name], first, last, tensor)
