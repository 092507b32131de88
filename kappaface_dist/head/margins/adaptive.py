"""Margins that change with the image or the progress of training.

Shapes: G images on all ranks, R classes of one chunk.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from kappaface_dist.counter_random import normal
from kappaface_dist.head.margins.angular import angular_logit, cosine_logit, scaled_angular_logit
from kappaface_dist.head.margins.base import Images, Margin, MarginState, TargetLogit, require

ANGLE = "an angle in radians, it must lie between 0 and π/2 = 1.571"
DECAY = "it must lie between 0 and 1"


def _follow(average: torch.Tensor, value: torch.Tensor, decay: float) -> None:
    """average ← decay·average + (1 − decay)·value in place, unless value is not finite."""
    moved = average.lerp(value.to(average.dtype), 1.0 - decay)
    average.copy_(torch.where(value.isfinite(), moved, average))


@dataclass(frozen=True, kw_only=True)
class AdaFace(Margin):
    """T = s·(cos(θ − m g) − m (g + 1)), g = clip(h (‖z‖ − μ) / σ, −1, 1) (Kim et al., CVPR 2022).

    Equations 13 to 15 there. μ and σ are running averages of mean and deviation of the norms over
    the global batch, up to the step before (there: this step's too, with weight 0.01); no gradient
    passes through the norm. Where θ < m g, the cosine stays at 1.
    """

    margin: float = 0.4  # radians, and a difference of cosines
    h: float = 0.333  # share of σ that moves the margin by m
    norm_decay: float = 0.99  # of the running averages, per batch

    uses_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(0.0 <= self.margin <= math.pi / 2, "margin", self.margin, ANGLE)
        require(0.0 <= self.h < math.inf, "h", self.h, "it must be 0 or more")
        require(0.0 <= self.norm_decay <= 1.0, "norm_decay", self.norm_decay, DECAY)

    @property
    def class_margin(self) -> float:
        return self.margin

    def init_state(self) -> dict[str, float]:
        return {"norm_mean": 20.0, "norm_std": 100.0}

    def observe(self, images: Images, state: MarginState) -> None:
        norm_G = self._bounded_norm(images)
        finite_G = norm_G.isfinite()
        count = finite_G.sum()
        mean = norm_G.where(finite_G, 0.0).sum() / count
        square_sum = (norm_G - mean).where(finite_G, 0.0).square().sum()
        _follow(state["norm_mean"], mean, self.norm_decay)
        # Of fewer than two norms there is no deviation: 0 / 0, which `_follow` passes over.
        std = (square_sum / (count - 1).clamp_min(0)).sqrt()
        _follow(state["norm_std"], std, self.norm_decay)

    def target_logit(self, images: Images, state: MarginState) -> TargetLogit:
        norm_G = self._bounded_norm(images)
        deviation_G = (norm_G - state["norm_mean"]) / (state["norm_std"] + 1e-3)
        quality_G = (self.h * deviation_G).clamp(-1.0, 1.0).to(images.cosine_G.dtype)
        value_G, slope_G, _ = angular_logit(images.cosine_G, -self.margin * quality_G)
        value_G = value_G - self.margin * (quality_G + 1.0)
        return TargetLogit(value_G * self.scale, slope_G * self.scale)

    def _bounded_norm(self, images: Images) -> torch.Tensor:
        assert images.norm_G is not None
        return images.norm_G.clamp(1e-3, 100.0)


@dataclass(frozen=True, kw_only=True)
class MagFace(Margin):
    """T = s·cos(θ + m(a)), a = ‖z‖ bounded to [l_a, u_a] (Meng et al., CVPR 2021, eq. 2 and 5).

    m(a) = l_m + (u_m − l_m) (a − l_a) / (u_a − l_a), and the loss gains λ·mean(a / u_a² + 1 / a).
    The gradient reaches the norm through both, within the bounds.
    """

    lower_norm: float = 10.0  # l_a
    upper_norm: float = 110.0  # u_a
    lower_margin: float = 0.45  # l_m, radians
    upper_margin: float = 0.8  # u_m, radians
    penalty_weight: float = 35.0  # λ

    uses_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        low, high = self.lower_norm, self.upper_norm
        require(0.0 < low < math.inf, "lower_norm", low, "it must be above 0")
        require(low < high < math.inf, "upper_norm", high, f"it must exceed lower_norm = {low}")
        require(0.0 <= self.lower_margin <= math.pi / 2, "lower_margin", self.lower_margin, ANGLE)
        allowed = f"it must lie between lower_margin = {self.lower_margin} and π/2 = 1.571"
        rising = self.lower_margin <= self.upper_margin <= math.pi / 2
        require(rising, "upper_margin", self.upper_margin, allowed)
        weight = self.penalty_weight
        require(0.0 <= weight < math.inf, "penalty_weight", weight, "it must be 0 or more")

    @property
    def class_margin(self) -> float:
        return self.lower_margin

    def target_logit(self, images: Images, state: MarginState) -> TargetLogit:
        assert images.norm_G is not None
        norm_G = images.norm_G.clamp(self.lower_norm, self.upper_norm)
        rise = (self.upper_margin - self.lower_margin) / (self.upper_norm - self.lower_norm)
        margin_G = self.lower_margin + rise * (norm_G - self.lower_norm)
        value_G, slope_G, margin_slope_G = angular_logit(images.cosine_G, margin_G)
        norm_slope_G = margin_slope_G * (rise * self._within(images.norm_G))
        return TargetLogit(value_G * self.scale, slope_G * self.scale, norm_slope_G * self.scale)

    def penalty(self, norm_G: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bounded_G = norm_G.clamp(self.lower_norm, self.upper_norm)
        value_G = bounded_G / self.upper_norm**2 + 1.0 / bounded_G
        slope_G = 1.0 / self.upper_norm**2 - bounded_G.square().reciprocal()
        return value_G * self.penalty_weight, slope_G * self._within(norm_G) * self.penalty_weight

    def _within(self, norm_G: torch.Tensor) -> torch.Tensor:
        return ((norm_G >= self.lower_norm) & (norm_G <= self.upper_norm)).to(norm_G.dtype)


@dataclass(frozen=True)
class HardNegatives:
    """cos θ_j (t + cos θ_j) in place of cos θ_j, where that exceeds the image's threshold."""

    threshold_G: torch.Tensor
    hardness: torch.Tensor  # t
    scale: float

    def transform(self, logit_GR: torch.Tensor) -> torch.Tensor:
        cosine_GR = logit_GR / self.scale
        hard_GR = cosine_GR > self.threshold_G[:, None]
        hardness = self.hardness.to(cosine_GR.dtype)
        logit_GR.mul_(torch.where(hard_GR, hardness + cosine_GR, 1.0))
        return torch.where(hard_GR, cosine_GR.mul_(2.0).add_(hardness), 1.0)


@dataclass(frozen=True, kw_only=True)
class CurricularFace(Margin):
    """T = s·cos(θ + m); negatives above cos(θ + m) count cos θ_j (t + cos θ_j) (Huang et al.).

    CVPR 2020, equations 6 to 11; t is the running average of the batches' mean target cosine, up to
    the step before (there: this step's too, with weight 0.01).
    Whether a negative is hard depends on the target cosine, which only the owner of the class can
    compute: this margin costs a fourth collective.
    """

    margin: float = 0.5  # radians
    cosine_decay: float = 0.99  # of t, per batch

    largest_cosine: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        require(0.0 <= self.margin <= math.pi / 2, "margin", self.margin, ANGLE)
        require(0.0 <= self.cosine_decay <= 1.0, "cosine_decay", self.cosine_decay, DECAY)

    @property
    def needs_all_cosines(self) -> bool:
        return True

    @property
    def class_margin(self) -> float:
        return self.margin

    def init_state(self) -> dict[str, float]:
        return {"hardness": 0.0}

    def observe(self, images: Images, state: MarginState) -> None:
        finite_G = images.cosine_G.isfinite()
        mean = images.cosine_G.where(finite_G, 0.0).sum() / finite_G.sum()
        _follow(state["hardness"], mean.clamp(-1.0, 1.0), self.cosine_decay)

    def target_logit(self, images: Images, state: MarginState) -> TargetLogit:
        return scaled_angular_logit(images.cosine_G, images.margin_G, self.scale)

    def negatives(self, images: Images, state: MarginState) -> HardNegatives:
        # Not margin_G: ranks know the margins of their own classes only, the cosines of all.
        margin_G = torch.full_like(images.cosine_G, self.margin)
        threshold_G, _, _ = angular_logit(images.cosine_G, margin_G)
        # A copy: state that is loaded before the second pass must not reach it.
        return HardNegatives(threshold_G, state["hardness"].clone(), self.scale)


@dataclass(frozen=True, kw_only=True)
class ElasticFace(Margin):
    """ArcFace or CosFace with m drawn anew for every image from N(m, σ²) (Boutros et al.).

    CVPR workshops 2022, equations 4 and 5. Drawn margins are kept within [0, π/2] (cosine: [0, 1]).

    Attributes:
        margin: the mean, in radians; for kind cosine a difference of cosines.
        deviation: σ.
        kind: angle (ElasticFace-Arc) or cosine (ElasticFace-Cos).
        plus: give the largest margins of a batch to the images with the smallest target cosines,
            of a micro-batch where there are several. Costs a fourth collective.
    """

    margin: float = 0.5
    deviation: float = 0.05
    kind: str = "angle"
    plus: bool = False

    def __post_init__(self) -> None:
        require(self.kind in ("angle", "cosine"), "kind", self.kind, "choose angle or cosine")
        allowed = f"for kind {self.kind} it must lie between 0 and {self._largest:.4g}"
        require(0.0 <= self.margin <= self._largest, "margin", self.margin, allowed)
        require(0.0 <= self.deviation <= 1.0, "deviation", self.deviation, DECAY)

    @property
    def needs_all_cosines(self) -> bool:
        return self.plus

    @property
    def class_margin(self) -> float:
        return self.margin

    @property
    def _largest(self) -> float:
        return math.pi / 2 if self.kind == "angle" else 1.0

    def target_logit(self, images: Images, state: MarginState) -> TargetLogit:
        margin_G = self.draw(images) if images.learning else images.margin_G
        if self.kind == "angle":
            return scaled_angular_logit(images.cosine_G, margin_G, self.scale)
        return cosine_logit(images.cosine_G, margin_G, self.scale)

    def draw(self, images: Images) -> torch.Tensor:
        """The margins of this batch: every rank draws those of all images alike, by number."""
        cosine_G = images.cosine_G
        number_G = images.number_G
        if number_G is None:
            number_G = torch.arange(len(cosine_G), device=cosine_G.device)
        noise_G = normal(images.seed, number_G).to(cosine_G.dtype)
        margin_G = (self.margin + self.deviation * noise_G).clamp(0.0, self._largest)
        if self.plus:
            hardest_first_G = cosine_G.argsort(stable=True)
            margin_G = torch.empty_like(margin_G).scatter_(
                0, hardest_first_G, margin_G.sort(descending=True).values
            )
        return margin_G
