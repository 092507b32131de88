"""Sharded class statistics: von Mises-Fisher concentration -> ψ -> the margin of each class.

For class c with unit embeddings z_i of weight b_i (1 in this window, β^age for earlier ones):

    a = Σ b_i,  q = Σ b_i²,  S = Σ b_i z_i,  n the images of the class in the dataset

    ρ²  = (‖S‖² − q) / (a² − q)                     unbiased for any weights; plugin: ‖S‖² / a²
    κ   = ρ (D − ρ²) / (1 − ρ²)                     Banerjee et al., JMLR 2005, eq. 4.4
    z   = (κ − mean κ) / std κ                      over measured classes of all shards, else 0
    ψ   = share · (1 − sigmoid(T z)) + (1 − share) · (1 + cos(π n / K_max)) / 2

With `statistic: target_cosine`, ρ is the mean target cosine before the margin, Σ b_i t_i / a: the
spread around the class centre instead of the class's own mean, for two numbers a class.

The rank that owns a class adds its rows from the embeddings it has gathered for the softmax anyway:
no collective per step. A refresh costs three all-reduces of scalars (four with shrinkage), in
float64, and some vectors of K numbers.
Shapes: G images on all ranks, D embedding size, K classes of this shard, R rows of one chunk; KX
stands for KD (resultant) or K (target cosine).
"""

import math

import torch

from kappaface_dist.head.margins import KappaFace
from kappaface_dist.parallel import ranks as parallel

# S is reduced this many rows at a time, so that ‖S‖² in float64 needs no second K x D matrix.
REFRESH_ROWS = 65536
# With a smaller effective size a²/q a class says nothing about its own spread.
MIN_EFFECTIVE_SIZE = 2.0
# Decayed images below this weight in all are forgotten: their squares would leave fp32's range.
FORGOTTEN_WEIGHT = 1e-6
# No class is taken to lie further than this many standard deviations from the mean: its margin must
# not vanish, nor must a few collapsed classes have a say in those of the others.
LARGEST_DEVIATION = 5.0
# For `summary`: counts of κ in bins of equal ratio, 1.5 % wide at D = 512, add up over the shards.
NUM_BINS = 1024
SMALLEST_BIN = 0.01
QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


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
        sum_KX: S [K, D], or the sum of target cosines [K]; fp32.
        weight_K: a, fp32.
        squared_weight_K: q, fp32; None where the statistic does without.
        kappa_K: κ at the last refresh that measured the class, fp32; NaN where none did.
    """

    def __init__(
        self, count_K: torch.Tensor, embedding_size: int, margin: KappaFace, device: torch.device
    ):
        num_rows = len(count_K)
        resultant = margin.statistic == "resultant"
        self.margin = margin
        self.embedding_size = embedding_size
        self.count_K = count_K.to(device=device, dtype=torch.int32)
        shape = (num_rows, embedding_size) if resultant else (num_rows,)
        self.sum_KX = torch.zeros(shape, device=device)
        self.weight_K = torch.zeros(num_rows, device=device)
        self.squared_weight_K = torch.zeros(num_rows, device=device) if resultant else None
        self.kappa_K = torch.full((num_rows,), math.nan, device=device)

    def add(
        self,
        embedding_GD: torch.Tensor,
        cosine_G: torch.Tensor,
        local_id_G: torch.Tensor,
        owned_G: torch.Tensor,
    ) -> None:
        """Add the images of this shard's classes; others add zero to whichever row they name.

        An embedding that is not finite is left out: one bad image must not cost a class its margin.
        On a GPU, index_add_ repeats bit by bit under torch.use_deterministic_algorithms.
        """
        if len(self.weight_K) == 0:
            return
        if self.margin.statistic == "resultant":
            # Embeddings gathered in bf16 are not of unit length any more.
            value_GX = torch.nn.functional.normalize(embedding_GD.to(self.sum_KX.dtype), dim=1)
            used_G = owned_G & value_GX.isfinite().all(dim=1)
            self.sum_KX.index_add_(0, local_id_G, value_GX.where(used_G[:, None], 0.0))
        else:
            used_G = owned_G & cosine_G.isfinite()
            cosine_G = cosine_G.to(self.sum_KX.dtype).where(used_G, 0.0)
            self.sum_KX.index_add_(0, local_id_G, cosine_G)
        one_G = used_G.to(self.weight_K.dtype)
        self.weight_K.index_add_(0, local_id_G, one_G)
        if self.squared_weight_K is not None:
            self.squared_weight_K.index_add_(0, local_id_G, one_G)

    def refresh(self) -> None:
        """End a window: measure κ where the window can, and let the old weights decay.

        Classes that the window did not show often enough keep their last κ. Collective where there
        is shrinkage.
        """
        squared_K, size_K = self._measure()
        limit = self.margin.max_resultant**2
        squared_K = squared_K.clamp(0.0, limit)
        measured_K = size_K >= MIN_EFFECTIVE_SIZE
        if self.margin.shrinkage > 0:
            sound_K = measured_K & (squared_K < limit)
            sums = torch.stack([sound_K.sum().double(), squared_K.where(sound_K, 0.0).sum()])
            num_sound, total = parallel.all_reduce_sum(sums).unbind()
            drawn_K = (self.margin.shrinkage * total / num_sound + size_K * squared_K) / (
                self.margin.shrinkage + size_K
            )
            squared_K = torch.where(sound_K, drawn_K, squared_K)
        kappa_K = concentration(squared_K.sqrt(), self.embedding_size).float()
        self.kappa_K.copy_(torch.where(measured_K, kappa_K, self.kappa_K))

        kept_K = self.weight_K * self.margin.decay >= FORGOTTEN_WEIGHT
        factor_K = torch.where(kept_K, self.margin.decay, 0.0)
        self.weight_K *= factor_K
        self.sum_KX *= factor_K[:, None] if self.sum_KX.dim() == 2 else factor_K
        if self.squared_weight_K is not None:
            self.squared_weight_K *= factor_K.square()

    def _measure(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(ρ², effective number of images) of each class, float64; NaN where there is no image."""
        a_K = self.weight_K.double()
        if self.squared_weight_K is None:
            # a is at most a²/q, the effective size, since no weight exceeds 1.
            return (self.sum_KX.double() / a_K).clamp_min(0.0).square(), a_K
        q_K = self.squared_weight_K.double()
        squared_sum_K = torch.empty_like(a_K)
        for first in range(0, len(a_K), REFRESH_ROWS):
            rows = slice(first, first + REFRESH_ROWS)
            length_R = torch.linalg.vector_norm(self.sum_KX[rows], dim=1, dtype=torch.float64)
            squared_sum_K[rows] = length_R.square()
        squared_K = squared_resultant(squared_sum_K, a_K, q_K, self.margin.estimator)
        return squared_K, a_K.square() / q_K

    def psi(self) -> torch.Tensor:
        """ψ of this shard's classes, float64, whatever the number of ranks. Collective."""
        measured_K = self.kappa_K.isfinite()
        kappa_K = self.kappa_K.double()
        # Identical images (ρ at its limit) must not stretch the scale for everyone else.
        # A number of the host: a copy to the device would be waited for.
        largest = torch.tensor(self.margin.max_resultant, dtype=torch.float64)
        limit = concentration(largest, self.embedding_size).item()
        sound_K = measured_K & (kappa_K < limit * (1.0 - 1e-5))
        totals = torch.stack([sound_K.sum().double(), kappa_K.where(sound_K, 0.0).sum()])
        num_sound, total = parallel.all_reduce_sum(totals).unbind()
        mean = total / num_sound.clamp_min(1.0)
        deviation_K = (kappa_K - mean).where(measured_K, 0.0)
        squares = parallel.all_reduce_sum(deviation_K.where(sound_K, 0.0).square().sum()[None])
        std = (squares / num_sound.clamp_min(1.0)).sqrt()
        # Equal concentrations differ by rounding only: that is no spread to standardise by.
        z_K = torch.where(std > 1e-5 * mean, deviation_K / std, 0.0)
        z_K = z_K.clamp(-LARGEST_DEVIATION, LARGEST_DEVIATION)
        hard_K = torch.sigmoid(-self.margin.temperature * z_K)  # 1 − sigmoid, never rounded to 0
        share = self.margin.concentration_share
        return share * hard_K + (1.0 - share) * self._rarity()

    def _rarity(self) -> torch.Tensor:
        """w^n = (1 + cos(π n / K_max)) / 2: 1 for the smallest classes, 0 for the largest."""
        count_K = self.count_K.double()
        largest = count_K.max() if len(count_K) else count_K.new_zeros(())
        largest = parallel.all_reduce_max(largest.reshape(1).clone()).clamp_min(1.0)
        return (1.0 + torch.cos(math.pi * count_K / (self.margin.count_scale * largest))) / 2

    def margins(self, *, refreshed: bool) -> torch.Tensor:
        """The margins m_c = ψ_c · m0 of this shard's classes in radians, fp32. Collective.

        Args:
            refreshed: whether a window has ended yet; before, `margin.first_window` holds.
        """
        psi_K = self.psi()
        if not refreshed and self.margin.first_window == "one":
            psi_K = torch.ones_like(psi_K)
        return (psi_K * self.margin.margin).float()

    def summary(self) -> dict[str, float]:
        """Quantiles of κ over the measured classes of all ranks, and the share of the others.

        Empty before the first measurement. One all-reduce. Quantiles are right to a bin's width.
        """
        limit = concentration(
            torch.tensor(self.margin.max_resultant, dtype=torch.float64), self.embedding_size
        ).item()
        width = math.log(limit / SMALLEST_BIN) / (NUM_BINS - 1)
        measured_K = self.kappa_K.isfinite()
        kappa_K = self.kappa_K.double().where(measured_K, 1.0).clamp_min(SMALLEST_BIN)
        bin_K = ((kappa_K / SMALLEST_BIN).log() / width).long().clamp(0, NUM_BINS - 1)
        counts = torch.zeros(NUM_BINS + 1, dtype=torch.float64, device=kappa_K.device)
        counts.index_add_(0, bin_K.where(measured_K, NUM_BINS), torch.ones_like(kappa_K))
        *bins, num_neutral = parallel.all_reduce_sum(counts).tolist()
        num_measured = sum(bins)
        if num_measured == 0:
            return {}
        reached = torch.tensor(bins).cumsum(0) / num_measured
        middles = SMALLEST_BIN * torch.exp(width * (torch.arange(NUM_BINS) + 0.5))
        places = torch.searchsorted(reached, torch.tensor(list(QUANTILES.values())))
        numbers = dict(zip(QUANTILES, middles[places].tolist(), strict=True))
        return {
            **{f"concentration_{name}": value for name, value in numbers.items()},
            "neutral_share": num_neutral / (num_neutral + num_measured),
        }

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors with a row per class that a checkpoint must hold."""
        state = {"sum": self.sum_KX, "weight": self.weight_K, "kappa": self.kappa_K}
        if self.squared_weight_K is not None:
            state["squared_weight"] = self.squared_weight_K
        return state
