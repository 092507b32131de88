"""Sharded class statistics: the von Mises-Fisher concentration of each class.

For class c with unit embeddings z_i of weight b_i (1 in this window, β^age for earlier ones):

    a = Σ b_i,  q = Σ b_i²,  S = Σ b_i z_i,  n the images of the class in the dataset

ρ² and κ follow from these (`resultant.py`).

An epoch e shows every image once. Images of different epochs may be two views of one photo, which
say nothing about the class, so only pairs within an epoch are compared: ρ² is then unbiased for any
weights (its root and κ are so up to their curvature), and a class is measured from two photos at
least. What a step reads of the next epoch waits for that epoch (`ClassMargins.end_epoch`).

With `statistic: target_cosine`, ρ is the mean target cosine before the margin, Σ b_i t_i / a: the
spread around the class centre instead of the class's own mean, for two numbers a class.
Its weight a says that two photos were seen where it exceeds what one photo, seen in every epoch,
would have.

The rank that owns a class adds its rows from the embeddings it has gathered for the softmax anyway:
no collective per step. A refresh costs three all-reduces of scalars (four with shrinkage), in
float64, and some vectors of K numbers.
Shapes: G images on all ranks, D embedding size, K classes of this shard, R rows of one chunk; KX
stands for KD (resultant) or K (target cosine).
"""

import math

import torch

from kappaface_dist.head.margins import KappaFace
from kappaface_dist.head.margins.resultant import (
    concentration,
    empirical_bayes,
    squared_resultant,
    towards_mean,
)
from kappaface_dist.head.rounding import Rounding

# S is reduced this many rows at a time: ‖S‖² in float64 needs no second K x D matrix, and what it
# needs stays in a processor's cache. Of a shard too large for a processor this share, for fewer
# launches: 4 MB for every million rows of 512 numbers.
REFRESH_ROWS, REFRESH_SHARE = 256, 1 / 1024
# With a smaller effective size a class says nothing about its own spread. Two images of equal
# weight have 2, and must not fall below it by rounding.
MIN_EFFECTIVE_SIZE = 2.0 - 1e-3
# Decayed images below this weight in all are forgotten: their squares would leave fp32's range.
FORGOTTEN_WEIGHT = 1e-6
ROUNDING_SEED = 0x5EED  # other than a run's, for its centres


class ClassStatistics:
    """S, a, q and κ of this shard's classes, and the margins that follow from them.

    Args:
        count_K: n, images of each class in the dataset.
        counted: whether count_K is known; only then does it bound what is measured.
        first_class: of the shard.

    Attributes:
        sum_KX: S of the present epoch [K, D], fp32 or bf16, or the sum of target cosines [K].
        num_adds: of micro-batches, which the rounding of a bf16 S depends on.
        weight_K: a, fp32.
        squared_weight_K: q, fp32; None where the statistic does without.
        past_K3: Σ (‖S‖² − q), Σ (a² − q) and Σ q of earlier epochs, fp32; None where none is kept.
        epoch_weights: the weight that an image has at most from earlier epochs, from this one.
        kappa_K: κ at the last refresh that measured the class, fp32; NaN where none did.
    """

    def __init__(
        self,
        count_K: torch.Tensor,
        embedding_size: int,
        margin: KappaFace,
        device: torch.device,
        *,
        counted: bool = True,
        first_class: int = 0,
    ):
        num_rows = len(count_K)
        resultant = margin.statistic == "resultant"
        self.margin = margin
        self.embedding_size = embedding_size
        self.count_K = count_K.to(device=device, dtype=torch.int32)
        shape = (num_rows, embedding_size) if resultant else (num_rows,)
        dtype = torch.bfloat16 if margin.statistic_dtype == "bf16" else torch.float32
        self.sum_KX = torch.zeros(shape, dtype=dtype, device=device)
        self.counted, self.num_adds, self.first_class = counted, 0, first_class
        self.weight_K = torch.zeros(num_rows, device=device)
        self.squared_weight_K = torch.zeros(num_rows, device=device) if resultant else None
        # A window that is one epoch and forgets all of it needs no past.
        remembers = resultant and (margin.decay > 0 or margin.refresh_steps > 0)
        self.past_K3 = torch.zeros(num_rows, 3, device=device) if remembers else None
        self.epoch_weights = (0.0, 0.0)
        self.kappa_K = torch.full((num_rows,), math.nan, device=device)

    def add(
        self,
        embedding_GD: torch.Tensor,
        cosine_G: torch.Tensor,
        local_id_G: torch.Tensor,
        used_G: torch.Tensor,
    ) -> None:
        """Add images of the present epoch; those that are not used add zero to a row they name.

        An embedding that is not finite is left out: one bad image must not cost a class its margin.
        On a GPU, index_add_ repeats bit by bit under torch.use_deterministic_algorithms.
        """
        self.epoch_weights = (self.epoch_weights[0], 1.0)
        self.num_adds += 1
        if len(self.weight_K) == 0:
            return
        if self.margin.statistic == "resultant":
            # Embeddings gathered in bf16 are not of unit length any more.
            value_GX = torch.nn.functional.normalize(embedding_GD.float(), dim=1)
            used_G = used_G & value_GX.isfinite().all(dim=1)
            value_GX = value_GX.where(used_G[:, None], 0.0)
            if self.sum_KX.dtype == torch.bfloat16:
                rounding = Rounding.of_step(ROUNDING_SEED, self.num_adds, self.first_class)
                rounding.add(self.sum_KX, local_id_G, value_GX)
            else:
                self.sum_KX.index_add_(0, local_id_G, value_GX)
        else:
            used_G = used_G & cosine_G.isfinite()
            cosine_G = cosine_G.to(self.sum_KX.dtype).where(used_G, 0.0)
            self.sum_KX.index_add_(0, local_id_G, cosine_G)
        one_G = used_G.to(self.weight_K.dtype)
        self.weight_K.index_add_(0, local_id_G, one_G)
        if self.squared_weight_K is not None:
            self.squared_weight_K.index_add_(0, local_id_G, one_G)

    def end_epoch(self) -> None:
        """From here on every image may come again: what was seen is compared no further."""
        earlier, present = self.epoch_weights
        self.epoch_weights = (earlier + present, 0.0)
        if self.squared_weight_K is None or not present:
            return
        if self.past_K3 is not None:
            self.past_K3 += self._present()
        self._forget_present()

    def _forget_present(self) -> None:
        for tensor in (self.sum_KX, self.weight_K, self.squared_weight_K):
            if tensor is not None:
                tensor.zero_()

    def most_epoch_weights(self) -> tuple[float, float]:
        """`epoch_weights` at most, for a checkpoint of an earlier version, which did not count
        them; a window by steps longer than two epochs can have more.
        """
        return (1.0 / (1.0 - self.margin.decay), 1.0)

    def refresh(self) -> None:
        """End a window: measure κ where the window can, and let the old weights decay.

        Classes that the window did not show often enough keep their last κ. Collective where
        estimates are drawn to the mean of all.
        """
        squared_K, size_K, measured_K = self._measure()
        limit = self.margin.max_resultant**2
        if self.margin.estimator == "empirical_bayes":
            # Not clamped at 0 yet: that would raise the mean.
            sound_K = measured_K & (squared_K < limit)
            squared_K = empirical_bayes(squared_K, size_K, sound_K, self.embedding_size)
        squared_K = squared_K.clamp(0.0, limit)
        if self.margin.shrinkage > 0:
            sound_K = measured_K & (squared_K < limit)
            squared_K = towards_mean(squared_K, size_K, sound_K, self.margin.shrinkage)
        kappa_K = concentration(squared_K.sqrt(), self.embedding_size).float()
        self.kappa_K.copy_(torch.where(measured_K, kappa_K, self.kappa_K))
        # A checkpoint may hold what an earlier version took for the concentration of one photo.
        self.kappa_K.masked_fill_(~self._measurable(), math.nan)
        self._decay()

    def _decay(self) -> None:
        decay = self.margin.decay
        self.epoch_weights = (decay * self.epoch_weights[0], decay * self.epoch_weights[1])
        if decay == 0.0:
            self._forget_present()
            if self.past_K3 is not None:
                self.past_K3.zero_()
            return
        kept_K = self.weight_K * decay >= FORGOTTEN_WEIGHT
        factor_K = torch.where(kept_K, decay, 0.0)
        self.weight_K *= factor_K
        self.sum_KX *= factor_K[:, None] if self.sum_KX.dim() == 2 else factor_K
        if self.squared_weight_K is not None:
            self.squared_weight_K *= factor_K.square()
        if self.past_K3 is not None:
            kept_K = self.past_K3[:, 2] * decay**2 >= FORGOTTEN_WEIGHT**2
            self.past_K3 *= torch.where(kept_K, decay**2, 0.0)[:, None]

    def _measurable(self) -> torch.Tensor:
        """Classes with two photos at least, as far as that is known: bool [K]."""
        return (self.count_K >= 2) | (not self.counted) | (self.margin.estimator == "released")

    def _measure(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(ρ², effective number of photos, whether they are two at least) of each class, float64;
        NaN where there is no image.
        """
        a_K = self.weight_K.double()
        if self.margin.estimator == "released":
            # ‖S‖ / n, whether the window has shown all images of the class, or none.
            pair_sum_K, _, squared_weight_K = self._present().unbind(dim=1)
            size_K = self.count_K.double()
            squared_K = (pair_sum_K + squared_weight_K) / size_K.clamp_min(1.0).square()
            return squared_K, size_K, torch.ones_like(a_K, dtype=torch.bool)
        if self.squared_weight_K is None:
            squared_K = (self.sum_KX.double() / a_K).clamp_min(0.0).square()
            size_K = a_K
            measured_K = a_K > sum(self.epoch_weights) * (1.0 + 1e-3)
        else:
            present_K3 = self._present()
            pairs_K3 = present_K3 if self.past_K3 is None else present_K3 + self.past_K3.double()
            pair_sum_K, pair_weight_K, squared_weight_K = pairs_K3.unbind(dim=1)
            squared_K = squared_resultant(
                pair_sum_K, pair_weight_K, squared_weight_K, self.margin.estimator
            )
            size_K = 1.0 + pair_weight_K / squared_weight_K
            measured_K = size_K >= MIN_EFFECTIVE_SIZE
        if self.counted:
            size_K = size_K.minimum(self.count_K.double())
        return squared_K, size_K, measured_K & self._measurable()

    def _present(self) -> torch.Tensor:
        """‖S‖² − q, a² − q and q of the present epoch, float64 [K, 3]."""
        assert self.squared_weight_K is not None
        a_K, q_K = self.weight_K.double(), self.squared_weight_K.double()
        squared_sum_K = torch.empty_like(a_K)
        step = max(REFRESH_ROWS, int(len(a_K) * REFRESH_SHARE))
        for first in range(0, len(a_K), step):
            rows = slice(first, first + step)
            length_R = torch.linalg.vector_norm(self.sum_KX[rows].double(), dim=1)
            squared_sum_K[rows] = length_R.square()
        return torch.stack([squared_sum_K - q_K, a_K.square() - q_K, q_K], dim=1)

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors with a row per class that a checkpoint must hold."""
        state = {"sum": self.sum_KX, "weight": self.weight_K, "kappa": self.kappa_K}
        if self.squared_weight_K is not None:
            state["squared_weight"] = self.squared_weight_K
        if self.past_K3 is not None:
            state["past"] = self.past_K3
        return state
