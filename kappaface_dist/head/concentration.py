"""Sharded class statistics: von Mises-Fisher concentration -> ψ -> the margin of each class.

For class c with unit embeddings z_i of weight b_i (1 in this window, decayed from earlier ones):

    a = Σ b_i,  q = Σ b_i²,  S = Σ b_i z_i,  n the images of the class in the dataset

    ρ²  = (‖S‖² − q) / (a² − q)                     unbiased for any weights; plugin: ‖S‖² / a²
    κ   = ρ (D − ρ²) / (1 − ρ²)                     Banerjee et al., JMLR 2005, eq. 4.4
    z   = (κ − mean κ) / std κ                      over measured classes of all shards, else 0
    ψ   = share · (1 − sigmoid(T z)) + (1 − share) · (1 + cos(π n / K_max)) / 2

The rank that owns a class adds its rows from the embeddings it has gathered for the softmax anyway:
no collective per step. A refresh costs three all-reduces of scalars, in float64.
Shapes: G images on all ranks, D embedding size, K classes of this shard.
"""

import math

import torch

from kappaface_dist import parallel
from kappaface_dist.head.margins import KappaFace

# Rows are reduced this many at a time, so that ‖S‖² needs no second K x D matrix.
REFRESH_ROWS = 65536
# With a smaller effective size a²/q a class says nothing about its own spread.
MIN_EFFECTIVE_SIZE = 2.0


def squared_resultant(
    squared_sum_K: torch.Tensor,
    weight_sum_K: torch.Tensor,
    squared_weight_sum_K: torch.Tensor,
    estimator: str,
) -> torch.Tensor:
    """ρ² of each class from ‖S‖², a and q; not clamped, NaN where the class has no image."""
    if estimator == "plugin":
        return squared_sum_K / weight_sum_K.square()
    return (squared_sum_K - squared_weight_sum_K) / (weight_sum_K.square() - squared_weight_sum_K)


def concentration(resultant_K: torch.Tensor, embedding_size: int) -> torch.Tensor:
    """κ from the mean resultant length r: r (D − r²) / (1 − r²)."""
    squared_K = resultant_K.square()
    return resultant_K * (embedding_size - squared_K) / (1.0 - squared_K)


class ClassStatistics:
    """S, a, q and κ of this shard's classes, and the margins that follow from them.

    Attributes:
        sum_KD: S, fp32.
        weight_K, squared_weight_K: a and q, fp32.
        kappa_K: κ at the last refresh that measured the class, fp32; NaN where none did.
    """

    def __init__(
        self, count_K: torch.Tensor, embedding_size: int, margin: KappaFace, device: torch.device
    ):
        num_rows = len(count_K)
        self.margin = margin
        self.embedding_size = embedding_size
        self.count_K = count_K.to(device=device, dtype=torch.float64)
        self.sum_KD = torch.zeros(num_rows, embedding_size, device=device)
        self.weight_K = torch.zeros(num_rows, device=device)
        self.squared_weight_K = torch.zeros(num_rows, device=device)
        self.kappa_K = torch.full((num_rows,), math.nan, device=device)

    def add(
        self, embedding_GD: torch.Tensor, local_id_G: torch.Tensor, owned_G: torch.Tensor
    ) -> None:
        """Add the images of this shard's classes; others add zero to whichever row they name.

        An embedding that is not finite is left out: one bad image must not cost a class its margin.
        """
        if len(self.weight_K) == 0:
            return
        # Embeddings gathered in bf16 are not of unit length any more.
        unit_GD = torch.nn.functional.normalize(embedding_GD.to(self.sum_KD.dtype), dim=1)
        used_G = owned_G & unit_GD.isfinite().all(dim=1)
        one_G = used_G.to(self.weight_K.dtype)
        self.sum_KD.index_add_(0, local_id_G, unit_GD.where(used_G[:, None], 0.0))
        self.weight_K.index_add_(0, local_id_G, one_G)
        self.squared_weight_K.index_add_(0, local_id_G, one_G)

    def refresh(self) -> None:
        """End a window: measure κ where the window can, and let the old weights decay.

        Classes that the window did not show often enough keep their last κ.
        """
        for first in range(0, len(self.weight_K), REFRESH_ROWS):
            rows = slice(first, first + REFRESH_ROWS)
            a_K, q_K = self.weight_K[rows].double(), self.squared_weight_K[rows].double()
            squared_sum_K = self.sum_KD[rows].double().square().sum(dim=1)
            squared_K = squared_resultant(squared_sum_K, a_K, q_K, self.margin.estimator)
            resultant_K = squared_K.clamp(0.0, self.margin.max_resultant**2).sqrt()
            kappa_K = concentration(resultant_K, self.embedding_size).float()
            # a²/q of a single image is exactly 1, of two exactly 2: no tolerance is needed
            # without decay, and with it the threshold is not a sharp one.
            measured_K = a_K.square() >= MIN_EFFECTIVE_SIZE * q_K.clamp_min(1e-30)
            self.kappa_K[rows] = torch.where(measured_K, kappa_K, self.kappa_K[rows])
        self.sum_KD *= self.margin.decay
        self.weight_K *= self.margin.decay
        self.squared_weight_K *= self.margin.decay**2

    def psi(self) -> torch.Tensor:
        """ψ of this shard's classes, float64. The same on any number of ranks."""
        measured_K = self.kappa_K.isfinite()
        kappa_K = torch.where(measured_K, self.kappa_K, 0.0).double()
        totals = torch.stack([measured_K.sum().double(), kappa_K.sum()])
        num_measured, total = parallel.all_reduce_sum(totals).unbind()
        mean = total / num_measured.clamp_min(1.0)
        deviation_K = torch.where(measured_K, kappa_K - mean, 0.0)
        squares = parallel.all_reduce_sum(deviation_K.square().sum().reshape(1))
        std = (squares / num_measured.clamp_min(1.0)).sqrt()
        # Equal concentrations differ by rounding only: that is no spread to standardise by.
        z_K = torch.where(std > 1e-6 * mean, deviation_K / std, 0.0)
        hard_K = 1.0 - torch.sigmoid(self.margin.temperature * z_K)
        share = self.margin.concentration_share
        return share * hard_K + (1.0 - share) * self._rarity()

    def _rarity(self) -> torch.Tensor:
        """w^n = (1 + cos(π n / K_max)) / 2: 1 for the smallest classes, 0 for the largest."""
        largest = self.count_K.max() if len(self.count_K) else self.count_K.new_zeros(())
        largest = parallel.all_reduce_max(largest.reshape(1).clone()).clamp_min(1.0)
        return (1.0 + torch.cos(math.pi * self.count_K / (self.margin.count_scale * largest))) / 2

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors with a row per class that a checkpoint must hold."""
        return {
            "sum": self.sum_KD,
            "weight": self.weight_K,
            "squared_weight": self.squared_weight_K,
            "kappa": self.kappa_K,
        }

    def margins(self, *, refreshed: bool) -> torch.Tensor:
        """The margins m_c = ψ_c · m0 of this shard's classes in radians, fp32.

        Args:
            refreshed: whether a window has ended yet; before, `margin.first_window` holds.
        """
        psi_K = self.psi()
        if not refreshed and self.margin.first_window == "one":
            psi_K = torch.ones_like(psi_K)
        return (psi_K * self.margin.margin).float()
