"""MobileFaceNet (Chen et al., CCBR 2018), two and four times as wide as published: mbf, mbf_large.

Parameter names and shapes are those of InsightFace's mbf and mbf_large, whose published checkpoints
load as they are. Inverted residuals: a 1 x 1 convolution, a depthwise 3 x 3 one, a 1 x 1 one with
no activation; the embedding weighs every place of the last feature map by itself (a depthwise
convolution of its size).
Shapes: B images, D embedding size, H W image size, X channels, Y Z height and width inside.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kappaface_dist.backbones.layers import drop_path, rising_rates, run_block

# Depths and widths of the four stages; mbf's only block of the first has no residual.
DEPTHS = {"mbf": (1, 4, 6, 2), "mbf_large": (2, 8, 12, 4)}
WIDTHS = {"mbf": (128, 128, 256, 256), "mbf_large": (256, 256, 512, 512)}
# Channels inside a block for each channel outside.
EXPANSION = {"mbf": 1.0, "mbf_large": 0.5}
LAST_WIDTH = 512


class ConvBlock(nn.Module):
    """Convolution, BN and, unless it is linear, PReLU."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
        linear: bool = False,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2 if padding is None else padding
        self.layers = nn.Sequential(
            nn.Conv2d(
                in_channels, channels, kernel_size, stride, padding, groups=groups, bias=False
            ),
            nn.BatchNorm2d(channels),
        )
        if not linear:
            self.layers.append(nn.PReLU(channels))

    def forward(self, x_BXYZ: torch.Tensor) -> torch.Tensor:
        return self.layers(x_BXYZ)


class Block(nn.Module):
    """1 x 1 to `inner` channels, depthwise 3 x 3, 1 x 1 to `channels`; x is added if `residual`."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        inner: int,
        *,
        stride: int = 1,
        residual: bool = True,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.residual, self.drop_path_rate = residual, drop_path_rate
        self.layers = nn.Sequential(
            ConvBlock(in_channels, inner),
            ConvBlock(inner, inner, 3, stride=stride, groups=inner),
            ConvBlock(inner, channels, linear=True),
        )

    def forward(self, x_BXYZ: torch.Tensor) -> torch.Tensor:
        out = self.layers(x_BXYZ)
        if not self.residual:
            return out
        return x_BXYZ + drop_path(out, self.drop_path_rate, training=self.training)


class Residual(nn.Module):
    """Blocks of one resolution."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*blocks)


class Features(nn.Module):
    """Weighs every place of the last feature map, then makes the embedding of its channels."""

    def __init__(self, pooling: nn.Module, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.layers = nn.Sequential(
            pooling,
            nn.Flatten(),
            nn.Linear(LAST_WIDTH, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )

    def forward(self, x_BXYZ: torch.Tensor) -> torch.Tensor:
        pooled = F.dropout(self.layers[:2](x_BXYZ), self.dropout, self.training)
        return self.layers[2:](pooled)


class MobileFaceNet(nn.Module):
    """image_B3HW -> embedding_BD; float32 under autocast too, as the other networks' is."""

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        expansion: float,
        *,
        embedding_size: int,
        image_size: int,
        dropout: float,
        drop_path: float,
        checkpointed_stages: Sequence[int],
    ) -> None:
        super().__init__()
        self.checkpointed_stages = frozenset(checkpointed_stages)
        inner = [int(width * expansion) for width in widths]
        rates = iter(rising_rates(drop_path, sum(depths)))

        def blocks(stage: int) -> Residual:
            width, num_blocks = widths[stage], depths[stage]
            return Residual(
                [
                    Block(width, width, inner[stage], drop_path_rate=next(rates))
                    for _ in range(num_blocks)
                ]
            )

        first: nn.Module = blocks(0)
        if depths[0] == 1:
            first = ConvBlock(widths[0], widths[0], 3, groups=widths[0] // 2)
        layers = [ConvBlock(3, widths[0], 3, stride=2), first]
        for stage, doubled in ((1, 1), (2, 1), (3, 2)):
            shrunk = inner[stage] * doubled
            layers += [
                Block(widths[stage - 1], widths[stage], shrunk, stride=2, residual=False),
                blocks(stage),
            ]
        self.layers = nn.ModuleList(layers)
        self.conv_sep = ConvBlock(widths[3], LAST_WIDTH)
        side = -(-image_size // 16)
        pooling = ConvBlock(LAST_WIDTH, LAST_WIDTH, side, groups=LAST_WIDTH, padding=0, linear=True)
        self.features = Features(pooling, embedding_size, dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        x = image_B3HW
        for number, layer in enumerate(self.layers):
            checkpointing = number // 2 + 1 in self.checkpointed_stages
            for block in layer.layers if isinstance(layer, Residual) else [layer]:
                x = run_block(block, x, checkpointing=checkpointing)
        x = self.conv_sep(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.features(x.float())


def build(
    name: str, depths: Sequence[int] | None, widths: Sequence[int] | None, **settings: Any
) -> MobileFaceNet:
    """InsightFace's mbf or mbf_large."""
    return MobileFaceNet(
        depths or DEPTHS[name], widths or WIDTHS[name], EXPANSION[name], **settings
    )
