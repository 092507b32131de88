"""The settings of KappaFace; `concentration.py` computes what they describe."""

import math
from dataclasses import dataclass

from kappaface_dist.head.margins.angular import scaled_angular_logit
from kappaface_dist.head.margins.base import Images, Margin, MarginState, TargetLogit, require

CHOICES = {
    "source": ("batch", "encoder", "memory"),
    "statistic": ("resultant", "target_cosine"),
    "statistic_dtype": ("fp32", "bf16"),
    "estimator": ("unbiased", "empirical_bayes", "plugin", "released"),
    "standardise": ("measured", "robust", "logarithmic", "released"),
    "beyond_pi": ("line", "cosine"),
    "first_window": ("neutral", "one"),
}


@dataclass(frozen=True, kw_only=True)
class KappaFace(Margin):
    """T = s·cos(θ + ψ_c·m0), ψ_c from statistics of the class (Oinar et al., arXiv 2201.07394).

    Attributes:
        margin: m0 in radians, the margin of a class with ψ = 1.
        temperature: T, how sharply ψ follows the standardised concentration.
        concentration_share: share of the concentration in ψ; the rest is that of the image count.
        source: of the embeddings that are measured: "batch", those of the training pass; "encoder",
            those of an average of the network's parameters (`training/encoder.py`); "memory", one
            for each image, of which 0.9 is the training pass's (`image_memory.py`).
        statistic: "resultant" measures the spread of a class around its own mean (D + 2 numbers a
            class), "target_cosine" around its centre (2 numbers a class).
        statistic_dtype: of the D numbers of "resultant"; "bf16": rounded stochastically.
        estimator: of the squared mean resultant length, "unbiased"; "empirical_bayes", drawn to the
            mean of all as far as its sampling error asks for; as published, "plugin"; or
            "released", over the dataset's number of images, with every class measured.
        standardise: κ by mean and deviation of the "measured" classes, z within ±5; by median and
            quartiles ("robust"); asinh(2κ / D) in place of κ ("logarithmic"); or as "released", by
            the sample's deviation with nearly identical photos in it, z without bounds.
        shrinkage: pseudo-count of images with which a class's ρ² is drawn to the mean of all.
        first_window: until the first refresh z = 0 ("neutral"), or ψ = 1 as released ("one").
        refresh_steps: length of a window in steps; 0: an epoch.
        decay: β, the weight of a window's images in the next one; 0 forgets them. Only photos of
            the same epoch are compared with each other.
        beyond_pi: where θ + m exceeds π, T falls on along a "line", or rises with the "cosine".
        max_resultant: largest ρ, since identical images would have an infinite concentration.
        count_scale: K_max is the largest class times this (released code: 1.05).
    """

    margin: float = 0.8
    temperature: float = 0.4
    concentration_share: float = 0.7
    source: str = "batch"
    statistic: str = "resultant"
    statistic_dtype: str = "fp32"
    estimator: str = "unbiased"
    standardise: str = "measured"
    shrinkage: float = 0.0
    first_window: str = "neutral"
    refresh_steps: int = 0
    decay: float = 0.0
    max_resultant: float = 0.995
    count_scale: float = 1.0
    beyond_pi: str = "line"

    def __post_init__(self) -> None:
        for field, choices in CHOICES.items():
            value = getattr(self, field)
            require(value in choices, field, value, f"choose {' or '.join(choices)}")
        halved = self.statistic_dtype == "bf16"
        allowed = "it is of statistic resultant, take that or leave it out"
        sound = self.statistic == "resultant" or not halved
        require(sound, "statistic_dtype", self.statistic_dtype, allowed)
        allowed = "an angle in radians, it must be above 0 and at most π/2 = 1.571"
        require(0.0 < self.margin <= math.pi / 2, "margin", self.margin, allowed)
        for field in ("temperature", "shrinkage", "refresh_steps"):
            value = getattr(self, field)
            require(0 <= value < math.inf, field, value, "it must be 0 or more")
        share = self.concentration_share
        require(0.0 <= share <= 1.0, "concentration_share", share, "it is a share, 0 to 1")
        require(0.0 <= self.decay < 1.0, "decay", self.decay, "it must be at least 0 and below 1")
        limit = self.max_resultant
        require(0.0 < limit < 1.0, "max_resultant", limit, "it must lie between 0 and 1")
        allowed = "below 1 the largest classes would gain margin again, use 1 or more"
        require(1.0 <= self.count_scale < math.inf, "count_scale", self.count_scale, allowed)
        self._check_together()

    def _check_together(self) -> None:
        """Settings that only hold with others."""
        resultant = self.statistic == "resultant"
        allowed = "statistic target_cosine needs the training pass's cosines, take source batch"
        require(resultant or self.source == "batch", "source", self.source, allowed)
        for name in ("empirical_bayes", "released"):
            allowed = "it is of statistic resultant, take that or another estimator"
            require(resultant or self.estimator != name, "estimator", self.estimator, allowed)
        plain = (self.decay, self.refresh_steps, self.shrinkage) == (0, 0, 0)
        allowed = "its window is one epoch, set decay, refresh_steps and shrinkage to 0"
        require(plain or self.estimator != "released", "estimator", self.estimator, allowed)
        allowed = "that estimate is drawn to the mean already, set shrinkage to 0"
        drawn = self.estimator == "empirical_bayes" and self.shrinkage > 0
        require(not drawn, "shrinkage", self.shrinkage, allowed)

    @property
    def needs_counts(self) -> str:
        """The setting that needs the number of images of every class, in words; empty: none."""
        if self.source == "memory":
            return "margin.source is memory"
        return "margin.estimator is released" if self.estimator == "released" else ""

    def target_logit(self, images: Images, state: MarginState) -> TargetLogit:
        straight = self.beyond_pi == "line"
        return scaled_angular_logit(images.cosine_G, images.margin_G, self.scale, straight=straight)
