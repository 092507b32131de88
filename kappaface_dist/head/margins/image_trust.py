"""How far each image's label is to be trusted, by its target cosine among those of all.

Once a network has learnt, images that are in another's class lie far from that class's centre: the
target cosines t of an epoch are of two kinds, whose shares π, means μ and common deviation σ a fit
of two normal distributions tells (`mixture.py`). In the next epoch an image of the low kind is

    P(clean | t) = π_high N(t; μ_high, σ) / (π_low N(t; μ_low, σ) + π_high N(t; μ_high, σ))

Where the cosines of an epoch are of one kind, every image counts in full. All ranks see all
cosines, so they all keep the same histogram of them, and come to the same fit.
Shapes: G images on all ranks.
"""

import logging
import math
from typing import Any

import numpy as np
import torch

from kappaface_dist.head.margins.base import Margin
from kappaface_dist.head.margins.kappaface import KappaFace
from kappaface_dist.mixture import Mixture, fit_mixture

logger = logging.getLogger(__name__)
ROBUST = ("off", "loss", "statistics", "both")
NUM_BINS = 500  # of [-1, 1]
FITTED = 4000  # evenly spread quantiles of an epoch say as much as all of its cosines
# What is low must be few, and far: classes that are hard, or small, are no wrong labels.
LARGEST_SHARE, LARGEST_MEAN = 0.5, 0.5  # of all images; of the mean of the high kind
SMALLEST_WEIGHT = 1e-12  # its logarithm is taken


class ImageTrust:
    """The weights of images.

    Args:
        loss, statistics: where they are used: in the loss, or for the class statistics, of which
            images that are rather wrong than right are left out.

    Attributes:
        kinds: of the epoch before; None where there was one kind, or no epoch.
    """

    def __init__(self, device: torch.device, *, loss: bool, statistics: bool):
        self.loss, self.statistics = loss, statistics
        self._histogram = torch.zeros(NUM_BINS, dtype=torch.int64, device=device)
        self._sum = torch.zeros((), dtype=torch.float64, device=device)  # of weights of images
        self._num_images = 0
        self._take_kinds(None)

    def weights(self, cosine_G: torch.Tensor) -> torch.Tensor:
        """P(clean | t) of each image; counts them, too.

        Args:
            cosine_G: target cosines of all images, each rank's.
        """
        bin_G = ((cosine_G + 1.0) * (NUM_BINS / 2)).nan_to_num(0.0).long().clamp_(0, NUM_BINS - 1)
        self._histogram.index_add_(0, bin_G, torch.ones_like(bin_G))
        log_odds, low, high, std = self._numbers.to(cosine_G.dtype).unbind()
        difference_G = (cosine_G - low).square() - (cosine_G - high).square()
        weight_G = (log_odds + difference_G / (2.0 * std.square())).sigmoid()
        weight_G = weight_G.clamp(SMALLEST_WEIGHT, 1.0)
        self._sum += weight_G.sum(dtype=torch.float64)
        self._num_images += len(weight_G)
        return weight_G

    def end_epoch(self) -> None:
        """Fit the cosines of the epoch, for the next one."""
        count_X = self._histogram.cpu().numpy()
        kinds = fit_mixture(quantiles(count_X)) if count_X.any() else None
        self._histogram.zero_()  # whose memory count_X may be
        if kinds is not None:
            low, high = kinds.mean
            if kinds.share[0] > LARGEST_SHARE or low > LARGEST_MEAN * high:
                kinds = None
        self._take_kinds(kinds)
        if kinds is None:
            logger.info("robust: the target cosines are of one kind: every image counts in full")
        else:
            logger.info(
                "robust: %.1f %% of the target cosines lie around %.3f, the others around %.3f: an"
                " image counts by the probability that it is one of the others",
                *(100 * kinds.share[0], *kinds.mean),
            )

    def summary(self) -> dict[str, float]:
        """Mean weight of the images since the last time, and the share of the low kind."""
        found = {"dirty_share": 0.0 if self.kinds is None else float(self.kinds.share[0])}
        if self._num_images:
            found["image_weight"] = self._sum.item() / self._num_images
        self._forget()
        return found

    def counters(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kinds = self.kinds
        fit = None if kinds is None else [*kinds.share.tolist(), *kinds.mean.tolist(), kinds.std]
        return {"histogram": self._histogram.tolist(), "kinds": fit}

    def load_counters(self, counters: dict[str, Any] | None) -> None:
        """Take them; None: of a run that kept none."""
        kept = counters or {"histogram": [0] * NUM_BINS, "kinds": None}
        self._histogram.copy_(torch.tensor(kept["histogram"]))
        self._forget()
        fit = kept["kinds"]
        self._take_kinds(
            None if fit is None else Mixture(np.array(fit[:2]), np.array(fit[2:4]), fit[4])
        )

    def _forget(self) -> None:
        self._sum.zero_()
        self._num_images = 0

    def _take_kinds(self, kinds: Mixture | None) -> None:
        self.kinds = kinds
        numbers = (math.inf, 0.0, 0.0, 1.0)  # odds of one kind, whatever the cosine
        if kinds is not None:
            odds = math.log(kinds.share[1] / kinds.share[0])
            numbers = odds, float(kinds.mean[0]), float(kinds.mean[1]), kinds.std
        self._numbers = torch.tensor(numbers, dtype=torch.float64, device=self._sum.device)


def trust_for(robust: str, margin: Margin, device: torch.device) -> ImageTrust | None:
    """Of a head whose setting is robust: "off", "loss", "statistics" or "both".

    Raises:
        ValueError: the margin has no statistics that see the training pass's cosines.
    """
    if robust not in ROBUST:
        raise ValueError(f"head.robust is {robust!r}: choose one of {', '.join(ROBUST)}")
    if robust == "off":
        return None
    statistics = robust in ("statistics", "both")
    if statistics and not (isinstance(margin, KappaFace) and margin.source != "encoder"):
        raise ValueError(
            f"head.robust is {robust}, but this margin has no class statistics of the training"
            " pass's embeddings: take kappaface with source batch or memory, or robust=loss"
        )
    return ImageTrust(device, loss=robust != "statistics", statistics=statistics)


def quantiles(count_X: np.ndarray) -> np.ndarray:
    """Evenly spread quantiles of cosines, each the middle of its bin, from counts of the bins."""
    total = int(count_X.sum())
    number = min(total, FITTED)
    place = ((np.arange(number) + 0.5) / number * total).astype(np.int64)
    chosen = np.searchsorted(count_X.cumsum(), place, side="right")
    return (chosen + 0.5) * (2.0 / len(count_X)) - 1.0
