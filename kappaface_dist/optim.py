"""The backbone's parameter groups and optimizer, and learning rates as pure functions of progress.

Progress is counted in images, not steps, so a run that goes on with another global batch (another
number of ranks) stays on the same curve.
"""

import math

import torch
from torch import nn

from kappaface_dist.head import AdamWRows, RowOptimizer, SGDRows


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
    name: str, backbone: nn.Module, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD or AdamW over the backbone's parameters."""
    groups = parameter_groups(backbone, weight_decay)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    return torch.optim.AdamW(groups, lr=lr)


def build_row_optimizer(
    name: str, *, momentum: float, weight_decay: float, momentum_dtype: torch.dtype
) -> RowOptimizer:
    """The same optimizer for the rows of the head; momentum_dtype is sgd's alone."""
    if name == "sgd":
        return SGDRows(momentum, weight_decay, momentum_dtype)
    return AdamWRows(weight_decay=weight_decay)
