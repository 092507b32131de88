"""Vision transformers for faces: 144 patches of 9 x 9 pixels at 112 x 112, no class token.

Parameter names and shapes are those of InsightFace's vit_t, vit_s, vit_b and vit_l, whose published
checkpoints load as they are. From Dosovitskiy et al. (ICLR 2021), with what the field changed: the
embedding is made of all patches, ReLU6, no bias in the attention's input, and in training a share
of the patches is left out and replaced by a learnt token behind the last block (He et al., CVPR
2022).
Shapes: B images, L patches, M patches that are not left out, E width, D embedding size, H W image
size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kappaface_dist.backbones.layers import NUM_STAGES, drop_path, rising_rates, run_block

PATCH_SIZE = 9
INIT_STD = 0.02


@dataclass(frozen=True)
class Shape:
    """Settings that the field gives each size."""

    width: int
    depth: int
    num_heads: int = 8
    drop_path: float = 0.1
    mask_ratio: float = 0.1


SHAPES = {
    "vit_t": Shape(256, 12),
    "vit_s": Shape(512, 12),
    "vit_b": Shape(512, 24),
    "vit_l": Shape(768, 24, drop_path=0.05, mask_ratio=0.05),
}


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BME: torch.Tensor) -> torch.Tensor:
        num_images, num_patches, width = x_BME.shape
        heads = (num_images, num_patches, 3, self.num_heads, width // self.num_heads)
        query, key, value = self.qkv(x_BME).view(heads).permute(2, 0, 3, 1, 4)
        # Sums and softmax are float32 inside, whatever the type of the operands.
        mixed = F.scaled_dot_product_attention(query, key, value)
        x_BME = self.proj(mixed.transpose(1, 2).reshape(x_BME.shape))
        return F.dropout(x_BME, self.dropout, self.training)


class Mlp(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x_BME: torch.Tensor) -> torch.Tensor:
        inner = F.dropout(F.relu6(self.fc1(x_BME)), self.dropout, self.training)
        return F.dropout(self.fc2(inner), self.dropout, self.training)


class Block(nn.Module):
    """x + Attention(LN(x)), then x + Mlp(LN(x))."""

    def __init__(self, width: int, num_heads: int, dropout: float, drop_path_rate: float) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads, dropout)
        self.mlp = Mlp(width, dropout)

    def forward(self, x_BME: torch.Tensor) -> torch.Tensor:
        rate = self.drop_path_rate
        x_BME = x_BME + drop_path(self.attn(self.norm1(x_BME)), rate, training=self.training)
        return x_BME + drop_path(self.mlp(self.norm2(x_BME)), rate, training=self.training)


class PatchEmbedding(nn.Module):
    """image_B3HW -> patches [B, L, E]; pixels beyond the last whole patch are not looked at."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        return self.proj(image_B3HW).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """image_B3HW -> embedding_BD.

    The embedding is float32 under autocast too: the layers behind the blocks run in full precision.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        *,
        embedding_size: int,
        image_size: int,
        dropout: float,
        drop_path: float,
        mask_ratio: float,
        checkpointed_stages: Sequence[int],
    ) -> None:
        super().__init__()
        self.checkpointed_stages = frozenset(checkpointed_stages)
        num_patches = (image_size // PATCH_SIZE) ** 2
        self.dropout = dropout
        self.num_kept = int(num_patches * (1.0 - mask_ratio))
        self.patch_embed = PatchEmbedding(width)
        self.pos_embed = nn.Parameter(torch.empty(1, num_patches, width))
        # Not trained where it is not used: DDP would wait for its gradient.
        masking = self.num_kept < num_patches
        self.mask_token = nn.Parameter(torch.empty(1, 1, width), requires_grad=masking)
        rates = rising_rates(drop_path, depth)
        self.blocks = nn.ModuleList(Block(width, num_heads, dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(width * num_patches, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        # The field truncates at ±2, which is a hundred of these standard deviations.
        nn.init.normal_(self.mask_token, std=INIT_STD)
        nn.init.normal_(self.pos_embed, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        x_BLE = self.patch_embed(image_B3HW) + self.pos_embed
        x_BLE = F.dropout(x_BLE, self.dropout, self.training)
        masking = self.training and self.num_kept < x_BLE.shape[1]
        if masking:
            x_BLE, place_BME = self._leave_out(x_BLE)
        for number, block in enumerate(self.blocks):
            stage = number * NUM_STAGES // len(self.blocks) + 1
            x_BLE = run_block(block, x_BLE, checkpointing=stage in self.checkpointed_stages)
        with torch.autocast(x_BLE.device.type, enabled=False):
            x_BLE = self.norm(x_BLE.float())
            if masking:
                whole_BLE = self.mask_token.expand(len(x_BLE), self.pos_embed.shape[1], -1)
                x_BLE = whole_BLE.scatter(1, place_BME, x_BLE)
            return self.feature(x_BLE.flatten(1))

    def _leave_out(self, x_BLE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Equally many random patches of every image, and where they come from: both [B, M, E]."""
        order_BL = torch.rand(x_BLE.shape[:2], device=x_BLE.device).argsort(dim=1)
        place_BME = order_BL[:, : self.num_kept, None].expand(-1, -1, x_BLE.shape[2])
        return x_BLE.gather(1, place_BME), place_BME


def build(
    name: str,
    depths: Sequence[int] | None,
    widths: Sequence[int] | None,
    drop_path: float | None,
    mask_ratio: float | None,
    **settings: Any,
) -> VisionTransformer:
    """InsightFace's vit_t, vit_s, vit_b or vit_l; None: as the field sets it."""
    shape = SHAPES[name]
    return VisionTransformer(
        widths[0] if widths else shape.width,
        depths[0] if depths else shape.depth,
        shape.num_heads,
        drop_path=shape.drop_path if drop_path is None else drop_path,
        mask_ratio=shape.mask_ratio if mask_ratio is None else mask_ratio,
        **settings,
    )
