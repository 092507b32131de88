"""What a network costs, counted on fake tensors: no memory, no computation."""

from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kappaface_dist.backbones import build_backbone


@dataclass(frozen=True)
class Cost:
    """Numbers of one network.

    Attributes:
        parameters: all of them, as the field counts.
        trained: those with a gradient.
        buffers: numbers of running statistics.
        forward_flops: of one image in evaluation, a multiplication and an addition counted as two
            (the field's GMAC are half of it); products and convolutions only.
        training_flops: of one image in training: three times its forward pass (the backward has two
            products for each), without what checkpointing repeats.
    """

    parameters: int
    trained: int
    buffers: int
    forward_flops: int
    training_flops: int


def count_cost(name: str, *, image_size: int = 112, **settings: object) -> Cost:
    """Count the network that build_backbone makes of the same arguments."""
    with FakeTensorMode():
        network = build_backbone(name, image_size=image_size, **settings)  # type: ignore[arg-type]
        parameters = list(network.parameters())
        return Cost(
            parameters=sum(p.numel() for p in parameters),
            trained=sum(p.numel() for p in parameters if p.requires_grad),
            buffers=sum(b.numel() for b in network.buffers()),
            forward_flops=_flops(network.eval(), image_size),
            training_flops=3 * _flops(network.train(), image_size),
        )


def _flops(network: nn.Module, image_size: int) -> int:
    image_B3HW = torch.empty(2, 3, image_size, image_size)
    # The fused attention kernels have no count; the plain products that they stand for do.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(image_B3HW)
    return counter.get_total_flops() // 2
