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
# If an image's largest shifted logit is below this, its sums are too near fp32's smallest number.
SMALLEST_EXPONENT = -80.0
# The rounding of a logit in fp32 grows with the scale; here it is 1e-5.
LARGEST_SCALE = 128.0
# exp2 is the cheaper function, on CPU and GPU.
LOG2_E = 1.0 / math.log(2.0)
# One chunk of logits takes about this many bytes, so that it stays in a core's cache; on a GPU
# it is large enough for the work on a chunk to outlast its launches: on an H100 64 MB are not
# (1.25M classes x 1024 images, cached: 25.2 ms a step, with 128 MB 18.7 ms).
CPU_CHUNK_BYTES = 2 << 20
GPU_CHUNK_BYTES = 128 << 20
FUSED = ("auto", "tiles", "chunks", "off")


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """The settings of both passes.

    Attributes:
        scale: s.
        dtype: of the operands of the matrix products.
        sample_rate: share of the shard's classes used as negatives in each step.
        logit_cache_bytes: of the first pass's result that the second may use again.
        centre_dtype: of the centres between steps: float32, or bfloat16 rounded stochastically;
            None: float64 where the products are, otherwise float32.
        filter_threshold: negatives with a cosine above it are left out (Z, U and h); None: none.
        split_centres: hold the centres as halves (`rows.py`); None: by dtype and device.
        chunk_bytes: of one chunk of logits; None: by the device.
        rows_per_chunk: as many rows, whatever chunk_bytes is; None: by chunk_bytes.
        fused: which Triton kernels run, where they can: they are for bf16 products. "tiles" write
            no logits (`tiles.py`), "chunks" do, "off" is none, "auto" what was measured here.
        largest_cosine: bound of all logits in units of s; above 1 if the margin raises negatives.
        skip_mass: share of the negatives' mass that the second pass may leave out, as whole tiles
            (`negligible.py`); 0: none.
        sub_centres: rows a class, of which an image meets the nearest (`sub_centres.py`).

    Raises:
        ValueError: for settings that cannot be meant, in the words of PartialFC's user.
    """

    scale: float
    dtype: torch.dtype = torch.float32
    sample_rate: float = 1.0
    logit_cache_bytes: int = 0
    centre_dtype: torch.dtype | None = None
    filter_threshold: float | None = None
    split_centres: bool | None = None
    chunk_bytes: int | None = None
    rows_per_chunk: int | None = None
    fused: str = "auto"
    largest_cosine: float = 1.0
    skip_mass: float = 0.0
    sub_centres: int = 1

    def __post_init__(self) -> None:
        if self.fused not in FUSED:
            raise ValueError(f"head.fused is {self.fused!r}: choose one of {', '.join(FUSED)}")
        largest_scale = LARGEST_SCALE / self.largest_cosine
        if not 0.0 < self.scale <= largest_scale:
            raise ValueError(
                f"margin.scale is {self.scale}: it must be above 0 and at most"
                f" {largest_scale:g}, the range in which the softmax is exact in fp32"
            )
        if not 0.0 < self.sample_rate <= 1.0:
            raise ValueError(
                f"head.sample_rate is {self.sample_rate}: it is a share, above 0 up to 1"
            )
        if self.filter_threshold is not None and not 0.0 < self.filter_threshold < 1.0:
            raise ValueError(
                f"head.filter_threshold is {self.filter_threshold}: it is a cosine, above 0 and"
                " below 1; leave it out to filter nothing"
            )
        if self.sub_centres < 1:
            raise ValueError(f"head.sub_centres is {self.sub_centres}: a class has 1 or more")
        if self.logit_cache_bytes < 0:
            raise ValueError(f"head.logit_cache_bytes is {self.logit_cache_bytes}: use 0 or more")
        if not 0.0 <= self.skip_mass < 1.0:
            raise ValueError(
                f"head.skip_mass is {self.skip_mass}: it is a share, from 0 (exact) to below 1"
            )
        if self.skip_mass and self.largest_cosine != 1.0:
            raise ValueError(
                f"head.skip_mass is {self.skip_mass}, but this margin changes the other classes'"
                " logits, whose mass is then not their gradient's: set it to 0"
            )
        if self.centre_dtype == torch.bfloat16 and self.dtype == torch.float64:
            raise ValueError(
                "head.centre_dtype is bf16, but the products are in float64: use fp32 or bf16"
            )
        if self.centre_dtype == torch.bfloat16 and self.split_centres:
            raise ValueError(
                "head.split_centres is for centres of two halves, but head.centre_dtype is bf16,"
                " the upper one alone: leave it out"
            )
        if self.split_centres and self.dtype != torch.bfloat16:
            raise ValueError(
                f"head.split_centres needs bf16 products, but head.dtype is {self.dtype}: set it"
                " to bf16"
            )

    @property
    def shift(self) -> float:
        """The constant c in exp(logit − c)."""
        return max(0.0, self.scale * self.largest_cosine - LARGEST_EXPONENT)

    @property
    def needs_peaks(self) -> bool:
        """Whether logits range so widely that each image needs a shift of its own (`peaks.py`).

        With one for all, an image far from every centre but its own would lose all its negatives.
        """
        return -self.scale - self.shift < SMALLEST_EXPONENT

    def splits_centres(self, device: torch.device) -> bool:
        """split_centres, or by default where the products would otherwise convert each centre."""
        if self.split_centres is not None:
            return self.split_centres
        if self.centre_dtype == torch.bfloat16:
            return False
        return self.dtype == torch.bfloat16 and device.type == "cuda"

    def kernels(self, device: torch.device) -> ModuleType | None:
        usable = self.fused != "off" and self.dtype == torch.bfloat16
        return triton_kernels(device.type) if usable else None

    def chunk_rows(self, embedding_GD: torch.Tensor) -> int:
        """Rows per chunk, those of whole classes."""
        if self.rows_per_chunk is not None:
            return whole_classes(self.rows_per_chunk, self.sub_centres)
        budget = self.chunk_bytes or default_chunk_bytes(embedding_GD.device.type)
        num_images, embedding_size = embedding_GD.shape
        rows = fitting_rows(budget, num_images, embedding_size, embedding_GD.element_size())
        return whole_classes(rows, self.sub_centres)


def default_chunk_bytes(device_type: str) -> int:
    return CPU_CHUNK_BYTES if device_type == "cpu" else GPU_CHUNK_BYTES


def fitting_rows(
    chunk_bytes: int, num_images: int, embedding_size: int, element_size: int = 4
) -> int:
    """Rows of a chunk whose logits, and whose centres, take at most chunk_bytes; 128 or more."""
    rows = chunk_bytes // (element_size * max(num_images, embedding_size))
    return max(128, rows // 128 * 128)


def whole_classes(num_rows: int, sub_centres: int) -> int:
    """So many rows or a few more: those of whole classes."""
    return -(-num_rows // sub_centres) * sub_centres


def unit_rows(weight_RD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(ŵ [R, D], 1/‖w‖ [R, 1]); a zero row stays zero."""
    inverse_R1 = inverse_norms(weight_RD, weight_RD.dtype)[:, None]
    return weight_RD * inverse_R1, inverse_R1


def inverse_norms(weight_RD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """1/‖w_j‖ [R] in dtype; large but finite for a zero row."""
    norm_R = torch.linalg.vector_norm(weight_RD, dim=1, dtype=dtype)
    return norm_R.clamp_min_(1e-12).reciprocal_()
