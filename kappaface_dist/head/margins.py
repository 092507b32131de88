"""Margins: from the target cosine t to the target logit T, with its exact derivative dT/dt.

A margin is a frozen dataclass with `scale`, `margin` (radians, or a cosine for CosFace) and
`target_logit`. The margin of each image's class is passed in, since KappaFace gives every class its
own.
Shapes: G images on all ranks.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch


def angular_logit(
    cosine_G: torch.Tensor, margin_G: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """T = s·cos(θ + m) and dT/dt = s·sin(θ + m) / sin θ, with t = cos θ.

    Beyond θ + m = π the cosine would rise again and reward a wrong angle; there T goes on as
    s·(t + cos m − 1), which meets it at θ = π − m and keeps falling with θ.
    At θ = 0 and π the derivative is unbounded; sin θ is held above the square root of the number
    type's epsilon. The gradient that reaches the embedding is dT/dt times a vector of length sin θ,
    so it stays bounded and nothing is lost.

    Args:
        cosine_G: target cosines; rounding beyond ±1 is clipped.
        margin_G: margins in radians, 0 <= m < π.
        scale: s.
    """
    cosine_G = cosine_G.clamp(-1.0, 1.0)
    smallest = math.sqrt(torch.finfo(cosine_G.dtype).eps)
    sine_G = (1.0 - cosine_G.square()).clamp_min(0.0).sqrt()
    cos_m_G, sin_m_G = margin_G.cos(), margin_G.sin()
    inside_G = cosine_G > -cos_m_G
    logit_G = torch.where(inside_G, cosine_G * cos_m_G - sine_G * sin_m_G, cosine_G + cos_m_G - 1.0)
    sine_sum_G = sine_G * cos_m_G + cosine_G * sin_m_G
    slope_G = torch.where(inside_G, sine_sum_G / sine_G.clamp_min(smallest), 1.0)
    # m = 0 is the plain softmax: its slope is 1 at every angle, the poles included.
    slope_G = torch.where(margin_G == 0, 1.0, slope_G)
    return logit_G * scale, slope_G * scale


@dataclass(frozen=True)
class ArcFace:
    """T = s·cos(θ + m), one m for all classes (Deng et al., CVPR 2019, eq. 3)."""

    margin: float = 0.5  # radians
    scale: float = 64.0

    def target_logit(
        self, cosine_G: torch.Tensor, margin_G: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return angular_logit(cosine_G, margin_G, self.scale)


@dataclass(frozen=True)
class CosFace:
    """T = s·(cos θ − m) (Wang et al., CVPR 2018, eq. 4)."""

    margin: float = 0.35  # a difference of cosines
    scale: float = 64.0

    def target_logit(
        self, cosine_G: torch.Tensor, margin_G: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (cosine_G - margin_G) * self.scale, torch.full_like(cosine_G, self.scale)


@dataclass(frozen=True)
class KappaFace:
    """T = s·cos(θ + ψ_c·m0), with ψ_c from the class statistics (Oinar et al., arXiv 2201.07394).

    `concentration.py` computes ψ. Its settings are here, since they belong to the margin.
    """

    margin: float = 0.8  # m0, radians: the margin of a class with ψ = 1
    scale: float = 64.0
    temperature: float = 0.4  # T: how sharply ψ follows the standardised concentration
    concentration_share: float = 0.7  # of ψ; the rest follows the number of images
    estimator: str = "unbiased"  # of the mean resultant length: unbiased, or plugin as published
    first_window: str = "neutral"  # until the first refresh: z = 0, or "one": ψ = 1 as released
    decay: float = 0.0  # share of the statistics that outlives a refresh
    max_resultant: float = 0.995  # identical images would have an infinite concentration
    count_scale: float = 1.0  # K_max is the largest class times this (released code: 1.05)

    def __post_init__(self) -> None:
        for name, choices in (
            ("estimator", ("unbiased", "plugin")),
            ("first_window", ("neutral", "one")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"margin.{name} is {getattr(self, name)!r}: choose {' or '.join(choices)}"
                )
        if not 0.0 < self.max_resultant < 1.0:
            raise ValueError(
                f"margin.max_resultant is {self.max_resultant}: it must lie between 0 and 1"
            )
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"margin.decay is {self.decay}: it must be at least 0 and below 1")
        if not 0.0 <= self.concentration_share <= 1.0:
            raise ValueError(
                f"margin.concentration_share is {self.concentration_share}: it is a share, 0 to 1"
            )
        if self.count_scale < 1.0:
            raise ValueError(
                f"margin.count_scale is {self.count_scale}: below 1 the largest classes would"
                " gain margin again; use 1 or more"
            )

    def target_logit(
        self, cosine_G: torch.Tensor, margin_G: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return angular_logit(cosine_G, margin_G, self.scale)


Margin = ArcFace | CosFace | KappaFace


def check_margin(margin: Margin) -> None:
    """Raise ValueError where the margin leaves the range in which T falls with the angle."""
    largest = 1.0 if isinstance(margin, CosFace) else math.pi / 2
    if not 0.0 <= margin.margin <= largest:
        raise ValueError(
            f"margin.margin is {margin.margin}: for {type(margin).__name__} it must lie between"
            f" 0 and {largest:.4g}"
        )


MARGINS = {"kappaface": KappaFace, "arcface": ArcFace, "cosface": CosFace}


def build_margin(name: str, **settings: Any) -> Margin:
    """The margin called name, with its own settings.

    Raises:
        ValueError: an unknown name or setting, or a value out of range.
    """
    if name not in MARGINS:
        raise ValueError(f"margin.name is {name!r}: choose one of {', '.join(MARGINS)}")
    known = [field.name for field in fields(MARGINS[name])]
    for key in settings:
        if key not in known:
            raise ValueError(f"margin.{key} is no setting of {name}: it has {', '.join(known)}")
    margin = MARGINS[name](**settings)
    check_margin(margin)
    return margin
