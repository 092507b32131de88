"""The backbone's parameter groups and optimizer, and learning rates as pure functions of progress.

Progress is counted in images, not steps, so a run that goes on with another global batch (another
number of ranks) stays on the same curve.
"""

import math

import torch
from torch import nn

from kappaface_dist.head import AdamWRows, RowOptimizer, SGDRows

ADAM_BETAS = (0.9, 0.999)  # torch.optim.AdamW's own
ADAM_EPSILON = 1e-8
NO_LIMIT = 1e30


def scaled_lr(lr: float, global_batch: int, reference_batch: int | None) -> float:
    """The linear rule lr · G / reference_batch (Goyal et al., 2017); without reference, lr."""
    return lr if reference_batch is None else lr * global_batch / reference_batch


def schedule_factor(
    schedule: str, position: int, total_images: int, warmup_images: float, power: float
) -> float:
    """What the peak learning rate is multiplied with after `position` images.

    Linear warm-up from 0 over warmup_images, then, with u the share of the rest that is done,
    (1 − u)^power for "polynomial" and (1 + cos πu) / 2 for "cosine": 0 at total_images.
    """
    if position < warmup_images:
        return position / warmup_images
    done = (position - warmup_images) / max(total_images - warmup_images, 1)
    done = min(done, 1.0)
    if schedule == "cosine":
        return (1.0 + math.cos(math.pi * done)) / 2.0
    return (1.0 - done) ** power


def parameter_groups(backbone: nn.Module, weight_decay: float) -> list[dict]:
    """Weights of products decay; biases, normalisation and PReLU slopes (1-D) do not."""
    trained = [p for p in backbone.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(
    name: str,
    backbone: nn.Module,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    implementation: str = "torch",
    foreach: bool | None = None,
) -> torch.optim.Optimizer:
    """SGD, AdamW or (apex only) LAMB over the backbone's parameters.

    Args:
        foreach: torch's updates all parameters with a few launches, and takes a copy of their
            gradients for it; None: where they lie on a GPU. torch itself would choose so, but not
            for the fake tensors that a plan is made on.

    Raises:
        RuntimeError: implementation is "apex", and apex cannot be imported or has no kernels.
    """
    groups = parameter_groups(backbone, weight_decay)
    if implementation == "apex":
        return _apex_optimizer(name, groups, lr, momentum)
    if foreach is None:
        foreach = all(p.is_cuda for group in groups for p in group["params"])
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, foreach=foreach)
    return torch.optim.AdamW(groups, lr=lr, foreach=foreach)


def _apex_optimizer(
    name: str, groups: list[dict], lr: float, momentum: float
) -> torch.optim.Optimizer:
    """apex's fused kernels (github.com/NVIDIA/apex): one launch for all parameters."""
    try:
        # apex imports without its kernels too, and fails at the first optimizer.
        from apex.optimizers import FusedAdam, FusedLAMB, FusedSGD

        if name == "sgd":
            return FusedSGD(groups, lr=lr, momentum=momentum)
        if name == "adamw":
            return FusedAdam(groups, lr=lr, adam_w_mode=True, betas=ADAM_BETAS, eps=ADAM_EPSILON)
        # The trainer clips the gradient itself: the limit of LAMB's own must not act.
        return FusedLAMB(groups, lr=lr, adam_w_mode=True, max_grad_norm=NO_LIMIT)
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"optimizer.implementation is apex, which cannot be used here ({error}): build apex"
            " with its CUDA extensions (NVIDIA's PyTorch image has it), or set it to torch"
        ) from error


def build_row_optimizer(
    name: str,
    *,
    momentum: float,
    weight_decay: float,
    momentum_dtype: torch.dtype | None,
    square_by_row: bool = False,
) -> RowOptimizer:
    """The same optimizer for the rows of the head.

    Args:
        momentum_dtype: sgd's; None: it keeps none, and moves at lr / (1 − momentum) at once, as far
            as with momentum in the end.
        square_by_row: of adamw.
    """
    if name != "sgd":
        return AdamWRows(weight_decay=weight_decay, square_by_row=square_by_row)
    if momentum_dtype is None:
        return SGDRows(0.0, weight_decay, lr_factor=1.0 / (1.0 - momentum))
    return SGDRows(momentum, weight_decay, momentum_dtype)
