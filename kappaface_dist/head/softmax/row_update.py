"""Optimizers that update a chunk of class centres at a time, as the second pass hands them out.

Rows that a step does not touch (sample rate below 1) keep their centre and their state: neither
momentum nor weight decay acts on them. A class's history is thus that of the steps it took part in.
Shapes: R rows of one chunk, D embedding size.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from kappaface_dist.head.rounding import Rounder, Rounding
from kappaface_dist.head.softmax.rows import split_rows, value_dtype
from kappaface_dist.head.softmax.second_pass import MicroBatch, TargetTerms, gradient, raw_gradients
from kappaface_dist.head.softmax.settings import Softmax
from kappaface_dist.head.softmax.tiles import takes, tiled_update

RowState = dict[str, torch.Tensor]


class RowOptimizer(Protocol):
    """Settings and formula of an optimizer whose state lives in the head, by class."""

    def init_state(self, weight_KD: torch.Tensor) -> RowState:
        """State for all rows, keyed by name; the first dimension of each tensor is the class.

        weight_KD may be bf16; `update` gets its rows in fp32.
        """

    def update(
        self, weight_RD: torch.Tensor, gradient_RD: torch.Tensor, state: RowState, lr: float
    ) -> None:
        """One step on R rows, in place; `state` holds the same rows. gradient_RD may be changed."""

    def fused_numbers(self) -> dict[str, float] | None:
        """The momentum and weight_decay with which `kernels.update_rows` computes this formula, and
        the lr_factor that its lr is multiplied with.

        It keeps state["momentum"], if there is any. None: the kernel has another formula, `update`
        is called.
        """


@dataclass(frozen=True)
class SGDRows:
    """torch.optim.SGD without dampening: m ← μ m + g + λ w;  w ← w − lr_factor lr m.

    With momentum_dtype bfloat16 m is rounded after the centre has been updated from the full one:
    2 bytes per parameter instead of 4. None: the type that centres are computed in.
    """

    momentum: float = 0.9
    weight_decay: float = 5e-4
    momentum_dtype: torch.dtype | None = None
    lr_factor: float = 1.0

    def init_state(self, weight_KD: torch.Tensor) -> RowState:
        if not self.momentum:
            return {}
        dtype = self.momentum_dtype or value_dtype(weight_KD.dtype)
        return {"momentum": torch.zeros_like(weight_KD, dtype=dtype)}

    def update(
        self, weight_RD: torch.Tensor, gradient_RD: torch.Tensor, state: RowState, lr: float
    ) -> None:
        if self.weight_decay:
            gradient_RD.add_(weight_RD, alpha=self.weight_decay)
        if self.momentum:
            momentum_RD = state["momentum"]
            if momentum_RD.dtype == gradient_RD.dtype:
                torch.add(gradient_RD, momentum_RD, alpha=self.momentum, out=momentum_RD)
                gradient_RD = momentum_RD
            else:  # rounded after the centres have moved by it
                momentum_RD.copy_(gradient_RD.add_(momentum_RD, alpha=self.momentum))
        weight_RD.add_(gradient_RD, alpha=-lr * self.lr_factor)

    def fused_numbers(self) -> dict[str, float] | None:
        numbers = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        return numbers | {"lr_factor": self.lr_factor}


@dataclass(frozen=True)
class AdamWRows:
    """torch.optim.AdamW (Loshchilov & Hutter, ICLR 2019), with a step count for each row.

    A row's bias correction counts the steps that touched it.

    Attributes:
        square_by_row: keep one second moment for a row, of the mean of its squared gradients
            (Adam-mini, Zhang et al., ICLR 2025, with a row as the block), instead of one for each
            parameter.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    square_by_row: bool = False

    def init_state(self, weight_KD: torch.Tensor) -> RowState:
        dtype = value_dtype(weight_KD.dtype)
        kept_KX = weight_KD[:, :1] if self.square_by_row else weight_KD
        return {
            "mean": torch.zeros_like(weight_KD, dtype=dtype),
            "square": torch.zeros_like(kept_KX, dtype=dtype).contiguous(),
            "steps": torch.zeros(len(weight_KD), dtype=torch.int32, device=weight_KD.device),
        }

    def update(
        self, weight_RD: torch.Tensor, gradient_RD: torch.Tensor, state: RowState, lr: float
    ) -> None:
        steps_R1 = state["steps"].add_(1)[:, None].to(weight_RD.dtype)
        weight_RD.mul_(1.0 - lr * self.weight_decay)
        mean_RD = state["mean"].lerp_(gradient_RD, 1.0 - self.beta1)
        square_RX = state["square"].mul_(self.beta2)
        if self.square_by_row:
            mean_square_R = torch.linalg.vecdot(gradient_RD, gradient_RD) / gradient_RD.shape[1]
            square_RX.add_(mean_square_R[:, None], alpha=1.0 - self.beta2)
        else:
            square_RX.addcmul_(gradient_RD, gradient_RD, value=1.0 - self.beta2)
        root_RX = (square_RX / (1.0 - self.beta2**steps_R1)).sqrt_().add_(self.epsilon)
        weight_RD.sub_(mean_RD / root_RX * (lr / (1.0 - self.beta1**steps_R1)))

    def fused_numbers(self) -> None:
        return None


def update_centres(
    batches: list[MicroBatch],
    softmax: Softmax,
    row_state: RowState,
    optimizer: RowOptimizer,
    lr: float,
    skip: torch.Tensor | None,
    rounding: Rounding,
) -> None:
    """The second pass with the update of each chunk's rows.

    Args:
        batches: of one step, over the same rows.
        row_state: the optimizer's state of the whole shard.
        skip: 0-dimensional bool; where true, nothing changes. The device decides, nobody waits.
        rounding: of centres held in bf16.
    """
    rows, targets = batches[0].rows, TargetTerms(batches)
    kernels, numbers = softmax.kernels(rows.weight_KD.device), optimizer.fused_numbers()
    if numbers is not None:
        numbers["lr"] = lr * numbers.pop("lr_factor")
        if takes(softmax, rows, batches[0].embedding_GD):
            momentum_KD = row_state.get("momentum")
            both = {**numbers, **vars(rounding)}
            tiled_update(batches, softmax, momentum_KD, targets.row_X, targets.term_XD, skip, both)
            return
    rounder = Rounder(rounding, rows.numbers, len(rows))
    for chunk, h_RD in raw_gradients(batches, softmax):
        first, last, lying_RD = chunk.first, chunk.last, chunk.lying_RD
        state = {name: rows.select(t, first, last) for name, t in row_state.items()}
        if kernels is not None and numbers is not None:
            kernels.update_rows(
                lying_RD,
                h_RD,
                state.get("momentum"),
                targets.row_X,
                targets.term_XD,
                first,
                split=rows.split,
                skip=skip,
                index_S=rows.index_S,
                **vars(rounding),
                **numbers,
            )
            rows.put_back(rows.weight_KD, first, last, lying_RD)
            for name, tensor in state.items():
                rows.put_back(row_state[name], first, last, tensor)
            continue
        weight_RD, gradient_RD = chunk.centre_RD, gradient(chunk, h_RD, targets)
        tensors = {"weight": weight_RD, **state}
        before = {name: t.clone() for name, t in tensors.items()} if skip is not None else {}
        optimizer.update(weight_RD, gradient_RD, state, lr)
        if skip is not None:
            for name, tensor in before.items():
                tensors[name].copy_(torch.where(skip, tensor, tensors[name]))
        if rows.split:
            lying_RD.copy_(split_rows(weight_RD))
        elif lying_RD.dtype == torch.bfloat16:
            rounder.round(weight_RD, first, lying_RD)
        rows.put_back(rows.weight_KD, first, last, lying_RD)
        for name, tensor in state.items():
            rows.put_back(row_state[name], first, last, tensor)
