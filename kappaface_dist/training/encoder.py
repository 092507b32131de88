"""The momentum encoder, whose embeddings KappaFace's statistics take with `margin.source: encoder`.

After each step its parameters are 0.9 of what they were and 0.1 of the network's, and it embeds the
step's images once more, in evaluation mode, as the authors' code does (train.py). Only parameters
are copied: its running statistics stay those of a new network, mean 0 and variance 1.
Shapes: X images of this rank in the whole step, D embedding size.
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.head import KappaFace, Margin

DECAY = 0.9
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def momentum_encoder(network: nn.Module, margin: Margin) -> nn.Module | None:
    """An encoder with the network's present parameters, if the margin asks for one."""
    if not (isinstance(margin, KappaFace) and margin.source == "encoder"):
        return None
    encoder = copy.deepcopy(network).requires_grad_(False).eval()
    for module in encoder.modules():
        if isinstance(module, BATCH_NORMS):
            module.reset_running_stats()
    return encoder


@torch.no_grad()
def follow(encoder: nn.Module, network: nn.Module) -> None:
    """Bring the encoder's parameters a step nearer to the network's."""
    torch._foreach_lerp_(
        list(encoder.parameters()), [p.detach() for p in network.parameters()], 1.0 - DECAY
    )


@torch.no_grad()
def encode(encoder: nn.Module, batches: Sequence[Batch]) -> torch.Tensor:
    """Embeddings of the micro-batches' images, one after another: [X, D]."""
    return torch.cat([encoder(batch.image_B3HW) for batch in batches])


def encoder_tensors(encoder: nn.Module | None) -> dict[str, torch.Tensor]:
    """What a checkpoint keeps of it: its parameters, the live tensors."""
    if encoder is None:
        return {}
    return {f"encoder.{name}": p.detach() for name, p in encoder.named_parameters()}
