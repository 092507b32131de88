"""What both passes of the softmax must agree on, and the lengths of centres.

Shapes: G images on all ranks, D embedding size, R rows of one chunk.
"""

import math
from dataclasses import dataclass
from types import ModuleType

import torch

from kappaface_dist.head.softmax.products import triton_kernels

# The largest exponent: e^64 times 1e8 classes is 6e35, within fp32's 3.4e38.
LARGEST_EXPONENT = 64.0
# Beyond this the shift would push the logits of orthogonal centres below fp32's smallest number.
LARGEST_SCALE = 128.0
# exp2 is the cheaper function, on CPU and GPU.
LOG2_E = 1.0 / math.log(2.0)
# One chunk of logits takes about this many bytes, so that it stays in a core's cache; on a GPU
# it is also large enough for the work on a chunk to outlast its launches.
CPU_CHUNK_BYTES = 2 << 20
GPU_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Softmax:
    """What both passes must agree on.

    Attributes:
        scale: s.
        dtype: of the operands of the matrix products.
        filter_threshold: negatives with a cosine above it are left out (Z, U and h); None: none.
        chunk_bytes: of one chunk of logits; None: by the device.
        fused: with the Triton kernels where they can run; they are for bf16 products.
        largest_cosine: bound of all logits in units of s; above 1 if the margin raises negatives.
        skip_mass: share of the negatives' mass that the second pass may leave out, as whole tiles
            (`negligible.py`); 0: none.
    """

    scale: float
    dtype: torch.dtype
    filter_threshold: float | None = None
    chunk_bytes: int | None = None
    fused: bool = True
    largest_cosine: float = 1.0
    skip_mass: float = 0.0

    @property
    def shift(self) -> float:
        """The constant c in exp(logit − c)."""
        return max(0.0, self.scale * self.largest_cosine - LARGEST_EXPONENT)

    def kernels(self, device: torch.device) -> ModuleType | None:
        usable = self.fused and self.dtype == torch.bfloat16
        return triton_kernels(device.type) if usable else None

    def chunk_rows(self, embedding_GD: torch.Tensor) -> int:
        """Rows per chunk, from the size of the batch and of the cache."""
        budget = CPU_CHUNK_BYTES if embedding_GD.device.type == "cpu" else GPU_CHUNK_BYTES
        budget = self.chunk_bytes or budget
        rows = budget // (embedding_GD.element_size() * max(embedding_GD.shape))
        return max(128, rows // 128 * 128)


def unit_rows(weight_RD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(ŵ [R, D], 1/‖w‖ [R, 1]); a zero row stays zero."""
    inverse_R1 = inverse_norms(weight_RD, weight_RD.dtype)[:, None]
    return weight_RD * inverse_R1, inverse_R1


def inverse_norms(weight_RD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """1/‖w_j‖ [R] in dtype; large but finite for a zero row."""
    norm_R = torch.linalg.vector_norm(weight_RD, dim=1, dtype=dtype)
    return norm_R.clamp_min_(1e-12).reciprocal_()
