"""What the families of networks share: recomputed activations and dropped paths.

Random choices come from torch's default generator, which the trainer seeds for every step.
Shapes: B images, X anything.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

NUM_STAGES = 4  # that checkpointing numbers; a transformer's are quarters of its blocks
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def drop_path(x_BX: torch.Tensor, rate: float, *, training: bool) -> torch.Tensor:
    """Zero the residual branch of a share `rate` of the images, and scale up the others'.

    Stochastic depth (Huang et al., ECCV 2016): the mean over the choices is x.
    """
    if rate == 0.0 or not training:
        return x_BX
    shape = (len(x_BX), *(1,) * (x_BX.ndim - 1))
    kept_B1 = torch.rand(shape, device=x_BX.device) >= rate
    return x_BX * (kept_B1.to(x_BX.dtype) / (1.0 - rate))


def rising_rates(rate: float, num_blocks: int) -> list[float]:
    """Drop-path rates that rise linearly from 0 in the first block to `rate` in the last."""
    return [rate * block / max(num_blocks - 1, 1) for block in range(num_blocks)]


def run_block(block: nn.Module, x_BX: torch.Tensor, *, checkpointing: bool) -> torch.Tensor:
    """block(x); with `checkpointing` only x is kept for the backward pass.

    The inner activations are then computed a second time, with the same random choices.
    """
    if checkpointing and block.training and torch.is_grad_enabled():
        return _checkpointed(block, x_BX)
    return block(x_BX)


def _checkpointed(block: nn.Module, x_BX: torch.Tensor) -> torch.Tensor:
    if torch.compiler.is_compiling():
        # The compiler repeats single operations, never what they change: running statistics count
        # once, and it refuses a context of ours.
        return checkpoint(block, x_BX, use_reentrant=False)
    return checkpoint(
        block,
        x_BX,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), running_statistics_kept(block)),
        preserve_rng_state=True,
    )


@contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Forward passes in here do not count their batch into the running statistics.

    For those that are done twice: a recomputation, a pass whose graph is built later.
    """
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in kept:
        norm.momentum, norm.num_batches_tracked = 0.0, None
        if isinstance(norm, nn.SyncBatchNorm) and count is not None:
            norm.num_batches_tracked = count.clone()  # it insists on one: this is thrown away
    try:
        yield
    finally:
        for norm, momentum, num_batches_tracked in kept:
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked
