"""Fixed margins: on the angle, on the cosine, on both, on neither.

With θ the angle to the class centre and t = cos θ. An additive angle makes cos(θ + m) rise again
beyond θ + m = π, which would reward a wrong angle; there T goes on as a line in t of slope s, so
that it stays continuous and keeps falling with θ.
Shapes: G images on all ranks.
"""

import math
from dataclasses import dataclass

import torch

from kappaface_dist.head.margins.base import Images, Margin, MarginState, TargetLogit, require


def bounded_sine(cosine_G: torch.Tensor) -> torch.Tensor:
    """sin θ, held above the square root of the number type's epsilon.

    Slopes by t contain 1/sin θ, unbounded at θ = 0 and π. The gradient that reaches the embedding
    is the slope times a vector of length sin θ, so this bound loses nothing.
    """
    epsilon = torch.finfo(cosine_G.dtype).eps
    return ((1.0 - cosine_G) * (1.0 + cosine_G)).clamp_min(epsilon).sqrt()


def angular_logit(
    cosine_G: torch.Tensor, margin_G: torch.Tensor, *, straight: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """cos(θ + m), its derivative by t = cos θ, and its derivative by m.

    Margins are in radians, −π/2 <= m <= π/2. Beyond θ + m = π the value is t + cos m − 1 (unless
    `straight` is false: it rises again); below θ + m = 0 (a negative margin) it stays at 1. Cosines
    beyond ±1 by rounding are clipped.
    """
    cosine_G = cosine_G.clamp(-1.0, 1.0)
    sine_G = ((1.0 - cosine_G) * (1.0 + cosine_G)).sqrt()
    cos_m_G, sin_m_G = margin_G.cos(), margin_G.sin()
    beyond_G = (margin_G > 0) & (cosine_G <= -cos_m_G) & straight
    below_G = (margin_G < 0) & (cosine_G >= cos_m_G)

    value_G = cosine_G * cos_m_G - sine_G * sin_m_G
    value_G = torch.where(beyond_G, cosine_G + cos_m_G - 1.0, value_G)
    slope_G = cos_m_G + cosine_G * sin_m_G / bounded_sine(cosine_G)
    slope_G = torch.where(beyond_G, 1.0, slope_G)
    margin_slope_G = -(sine_G * cos_m_G + cosine_G * sin_m_G)
    margin_slope_G = torch.where(beyond_G, -sin_m_G, margin_slope_G)
    return (
        torch.where(below_G, 1.0, value_G),
        torch.where(below_G, 0.0, slope_G),
        torch.where(below_G, 0.0, margin_slope_G),
    )


def scaled_angular_logit(
    cosine_G: torch.Tensor, margin_G: torch.Tensor, scale: float, *, straight: bool = True
) -> TargetLogit:
    """T = s·cos(θ + m) with its derivative by t."""
    value_G, slope_G, _ = angular_logit(cosine_G, margin_G, straight=straight)
    return TargetLogit(value_G * scale, slope_G * scale)


def cosine_logit(cosine_G: torch.Tensor, margin_G: torch.Tensor, scale: float) -> TargetLogit:
    """T = s·(t − m) with its derivative by t."""
    return TargetLogit((cosine_G - margin_G) * scale, torch.full_like(cosine_G, scale))


@dataclass(frozen=True, kw_only=True)
class NormFace(Margin):
    """T = s·cos θ: the softmax of cosines, no margin (Wang et al., ACM MM 2017, eq. 4)."""

    def target_logit(self, images: Images, state: MarginState) -> TargetLogit:
        return cosine_logit(images.cosine_G, torch.zeros_like(images.cosine_G), self.scale)


@dataclass(frozen=True, kw_only=True)
class ArcFace(Margin):
    """T = s·cos(θ + m), one m for all classes (Deng et al., CVPR 2019, eq. 3)."""

    margin: float = 0.5  # radians

    def __post_init__(self) -> None:
        allowed = "an angle in radians, it must lie between 0 and π/2 = 1.571"
        require(0.0 <= self.margin <= math.pi / 2, "margin", self.margin, allowed)

    @property
    def class_margin(self) -> float:
        return self.margin

    def target_logit(self, images: Images, state: MarginState) -> TargetLogit:
        return scaled_angular_logit(images.cosine_G, images.margin_G, self.scale)


@dataclass(frozen=True, kw_only=True)
class CosFace(Margin):
    """T = s·(cos θ − m) (Wang et al., CVPR 2018, eq. 4)."""

    margin: float = 0.35  # a difference of cosines

    def __post_init__(self) -> None:
        allowed = "a difference of cosines, it must lie between 0 and 1"
        require(0.0 <= self.margin <= 1.0, "margin", self.margin, allowed)

    @property
    def class_margin(self) -> float:
        return self.margin

    def target_logit(self, images: Images, state: MarginState) -> TargetLogit:
        return cosine_logit(images.cosine_G, images.margin_G, self.scale)


@dataclass(frozen=True, kw_only=True)
class Combined(Margin):
    """T = s·(cos(m1 θ + m2) − m3), all three honoured (Deng et al., CVPR 2019, eq. 4).

    Beyond m1 θ + m2 = π, T falls on as s·(t − cos θ0 − 1 − m3), θ0 = (π − m2)/m1.
    """

    m1: float = 1.0  # factor of the angle
    m2: float = 0.3  # radians
    m3: float = 0.2  # a difference of cosines

    def __post_init__(self) -> None:
        require(0.0 < self.m1 <= 8.0, "m1", self.m1, "a factor, it must be above 0 and at most 8")
        allowed = "an angle in radians, it must lie between 0 and π/2 = 1.571"
        require(0.0 <= self.m2 <= math.pi / 2, "m2", self.m2, allowed)
        allowed = "a difference of cosines, it must lie between 0 and 1"
        require(0.0 <= self.m3 <= 1.0, "m3", self.m3, allowed)

    @property
    def class_margin(self) -> float:
        return self.m2

    def target_logit(self, images: Images, state: MarginState) -> TargetLogit:
        cosine_G = images.cosine_G.clamp(-1.0, 1.0)
        end = (math.pi - self.m2) / self.m1
        beyond_G = cosine_G.acos() > end
        angle_G = self.m1 * cosine_G.acos() + self.m2
        logit_G = torch.where(beyond_G, cosine_G - math.cos(end) - 1.0, angle_G.cos())
        # The slope is taken at the angle that belongs to the bounded sine, so that it tends to m1²
        # at the poles where m2 = 0.
        sine_G = bounded_sine(cosine_G)
        inner_G = self.m1 * torch.atan2(sine_G, cosine_G) + self.m2
        slope_G = torch.where(beyond_G, 1.0, self.m1 * inner_G.sin() / sine_G)
        return TargetLogit((logit_G - self.m3) * self.scale, slope_G * self.scale)


@dataclass(frozen=True, kw_only=True)
class SphereFace(Margin):
    """T = s·ψ(θ), ψ(θ) = (−1)^k cos(mθ) − 2k, k = ⌊mθ/π⌋ (Liu et al., CVPR 2017, eq. 7).

    ψ falls over the whole range of θ by itself. The paper's m = 4 needs its annealing; the default
    trains without.
    """

    margin: float = 1.35  # factor of the angle

    def __post_init__(self) -> None:
        allowed = "a factor of the angle, it must lie between 1 and 8"
        require(1.0 <= self.margin <= 8.0, "margin", self.margin, allowed)

    @property
    def class_margin(self) -> float:
        return self.margin

    def target_logit(self, images: Images, state: MarginState) -> TargetLogit:
        cosine_G = images.cosine_G.clamp(-1.0, 1.0)
        angle_G = self.margin * cosine_G.acos()
        k_G = (angle_G / math.pi).floor()
        sign_G = 1.0 - 2.0 * k_G.remainder(2.0)
        logit_G = sign_G * angle_G.cos() - 2.0 * k_G
        sine_G = bounded_sine(cosine_G)
        inner_G = self.margin * torch.atan2(sine_G, cosine_G)
        # Its own k: at θ = π the two angles lie on either side of a multiple of π.
        sign_G = 1.0 - 2.0 * (inner_G / math.pi).floor().remainder(2.0)
        slope_G = sign_G * self.margin * inner_G.sin() / sine_G
        return TargetLogit(logit_G * self.scale, slope_G * self.scale)
