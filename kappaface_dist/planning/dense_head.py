"""The dense head that PartialFC is measured against.

Shapes: B images on this rank, G images on all ranks, D embedding size, K classes of this shard.
"""

from typing import Any

import torch
import torch.nn.functional as F

from kappaface_dist.head.margins import ArcFace
from kappaface_dist.head.shard import initial_centres, shard_classes
from kappaface_dist.parallel import ranks as parallel

# So small that the centres hardly move while they are timed: converged images would be skipped.
LR = 1e-5
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: torch.Tensor) -> torch.Tensor:
        return parallel.all_gather_rows(x_BD)

    @staticmethod
    def backward(ctx: Any, gradient_GD: torch.Tensor) -> torch.Tensor:
        return parallel.reduce_scatter_rows(gradient_GD)


class _Sum(torch.autograd.Function):
    """The sum over the ranks; each rank differentiates the same loss of it once."""

    @staticmethod
    def forward(ctx: Any, x_G: torch.Tensor) -> torch.Tensor:
        return parallel.all_reduce_sum(x_G.clone())

    @staticmethod
    def backward(ctx: Any, gradient_G: torch.Tensor) -> torch.Tensor:
        return gradient_G


class DenseSide(torch.nn.Module):
    """ArcFace as it is commonly written: all logits at once, autograd, torch.optim.SGD.

    The class matrix is sharded over the ranks where there are several, with the softmax's maximum
    and sum reduced over them. In bf16 the matrix products run under autocast.
    """

    def __init__(
        self, num_classes: int, embedding_size: int, dtype: torch.dtype, device: torch.device
    ):
        super().__init__()
        self.margin = ArcFace()
        self.dtype = dtype
        self.classes = shard_classes(num_classes, parallel.rank(), parallel.world_size())
        weight_KD = initial_centres(self.classes, embedding_size, 0, torch.float32, device)
        self.weight_KD = torch.nn.Parameter(weight_KD)
        self.optimizer = torch.optim.SGD(
            self.parameters(),
            lr=LR,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            foreach=False,
        )

    def forward(self, embedding_BD: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        embedding_GD, label_G = F.normalize(embedding_BD), label_B
        if parallel.world_size() > 1:
            embedding_GD = _Gather.apply(embedding_GD)
            label_G = parallel.all_gather_rows(label_B)
        reduced = self.dtype == torch.bfloat16
        with torch.autocast(embedding_BD.device.type, self.dtype, enabled=reduced):
            cosine_GK = F.linear(embedding_GD, F.normalize(self.weight_KD))
        cosine_GK = cosine_GK.float()
        image = torch.where((label_G >= self.classes.start) & (label_G < self.classes.stop))[0]
        column = label_G[image] - self.classes.start
        theta = torch.acos(cosine_GK[image, column].clamp(-1 + 1e-7, 1 - 1e-7))
        logit_GK = cosine_GK.index_put((image, column), torch.cos(theta + self.margin.margin))
        logit_GK = logit_GK * self.margin.scale
        if parallel.world_size() == 1:
            return F.cross_entropy(logit_GK, label_G)
        largest_G = parallel.all_reduce_max(logit_GK.detach().amax(dim=1))
        sum_G = _Sum.apply((logit_GK - largest_G[:, None]).exp().sum(dim=1))
        target_G = torch.zeros_like(sum_G).index_put((image,), logit_GK[image, column])
        return (sum_G.log() + largest_G - _Sum.apply(target_G)).mean()

    def train_step(self, embedding_BD: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        loss = self(embedding_BD, label_B)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def numbers(self) -> dict[str, float]:
        return {}

    def state(self) -> list[torch.Tensor]:
        momentum = self.optimizer.state[self.weight_KD]["momentum_buffer"]
        return [self.weight_KD.detach(), momentum]
