"""iResNet, the residual network that the field trains, and a tiny one of the same blocks.

Parameter names and shapes are those of InsightFace's published r18..r200 checkpoints, which
therefore load as they are. The block is from Duta et al., "Improved Residual Networks" (2020), as
in ArcFace (Deng et al., 2019, section 3.1): BN-Conv-BN-PReLU-Conv-BN, stride in the second conv.
Shapes: B images, D embedding size, H W image size, X channels, Y Z height and width inside.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kappaface_dist.backbones.layers import drop_path, rising_rates, run_block

DEPTHS = {
    "r18": (2, 2, 2, 2),
    "r34": (3, 4, 6, 3),
    "r50": (3, 4, 14, 3),
    "r100": (3, 13, 30, 3),
    "r200": (6, 26, 60, 6),
}
WIDTHS = (64, 128, 256, 512)
TINY_DEPTHS = (1, 1, 1, 1)
TINY_WIDTHS = (16, 32, 64, 128)
# Four stages halve the image: 112 pixels become 7.
REDUCTION = 16


class Block(nn.Module):
    """x + BN(Conv(PReLU(BN(Conv(BN(x)))))), with the shortcut convolved where the shape changes."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        norm: Callable[[int], nn.Module],
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.bn1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = norm(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                norm(channels),
            )

    def forward(self, x_BXYZ: torch.Tensor) -> torch.Tensor:
        out = self.conv1(self.bn1(x_BXYZ))
        out = self.bn3(self.conv2(self.prelu(self.bn2(out))))
        shortcut = x_BXYZ if self.downsample is None else self.downsample(x_BXYZ)
        return drop_path(out, self.drop_path_rate, training=self.training) + shortcut


class IResNet(nn.Module):
    """image_B3HW -> embedding_BD; `depths` blocks of `widths` channels in four stages.

    The embedding is float32 under autocast too: the last layer and its normalisation, under 1 % of
    the work, run in full precision, as the field's trainers do it.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        stem_stride: int = 1,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        last_norm: Callable[[int], nn.Module] = nn.BatchNorm1d,
        embedding_size: int,
        image_size: int,
        dropout: float,
        drop_path: float,
        checkpointed_stages: Sequence[int],
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.checkpointed_stages = frozenset(checkpointed_stages)
        self.conv1 = nn.Conv2d(3, widths[0], 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = norm(widths[0])
        self.prelu = nn.PReLU(widths[0])
        in_channels = widths[0]
        side = -(-image_size // stem_stride)
        rates = iter(rising_rates(drop_path, sum(depths)))
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            blocks = [Block(in_channels, width, 2, norm, next(rates))]
            blocks += [Block(width, width, 1, norm, next(rates)) for _ in range(depth - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            in_channels = width
            side = -(-side // 2)
        self.bn2 = norm(in_channels)
        self.fc = nn.Linear(in_channels * side * side, embedding_size)
        self.features = last_norm(embedding_size)
        # A scale per embedding dimension would only distort the cosine that the head trains.
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn1(self.conv1(image_B3HW)))
        for stage in (1, 2, 3, 4):
            for block in self.get_submodule(f"layer{stage}"):  # type: ignore[attr-defined]
                x = run_block(block, x, checkpointing=stage in self.checkpointed_stages)
        x = F.dropout(self.bn2(x).flatten(1), self.dropout, self.training)
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.fc(x.float()))


def iresnet(
    name: str, depths: Sequence[int] | None, widths: Sequence[int] | None, **settings: Any
) -> IResNet:
    """InsightFace's r18, r34, r50, r100 or r200."""
    return IResNet(depths or DEPTHS[name], widths or WIDTHS, **settings)


def tiny(
    name: str, depths: Sequence[int] | None, widths: Sequence[int] | None, **settings: Any
) -> IResNet:
    """0.4 million parameters; about 800 images/s forward and backward at 56 pixels on one core.

    tiny normalises over the batch of its rank, as the large ones do. tiny_gn normalises every image
    by itself: it learns somewhat slower, but a step is the same however the batch lies over ranks.
    """
    if name == "tiny_gn":
        settings |= {"norm": _group_norm, "last_norm": nn.LayerNorm}
    return IResNet(depths or TINY_DEPTHS, widths or TINY_WIDTHS, stem_stride=2, **settings)


def _group_norm(num_channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_channels // 8, num_channels)
