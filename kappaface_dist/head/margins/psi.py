"""From the concentrations of all classes to their margins, and the log's numbers of both.

    z   = (κ − mean κ) / std κ                      over measured classes of all shards, else 0;
                                                    `standardise` has other ways
    ψ   = share · (1 − sigmoid(T z)) + (1 − share) · (1 + cos(π n / K_max)) / 2

Everything here is collective: all-reduces of scalars in float64, and some vectors of K numbers.
Shapes: K classes of this shard.
"""

import math
from dataclasses import replace

import torch

from kappaface_dist.head.margins.kappaface import KappaFace
from kappaface_dist.head.margins.resultant import concentration
from kappaface_dist.parallel import ranks as parallel

# No class is taken to lie further than this many standard deviations from the mean: its margin must
# not vanish, nor must a few collapsed classes have a say in those of the others.
LARGEST_DEVIATION = 5.0
# Counts of κ in bins of equal ratio, 1.5 % wide at D = 512, add up
# over the shards.
NUM_BINS = 1024
SMALLEST_BIN = 0.01
QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
# Of a normal distribution: the quartiles' distance in standard deviations.
QUARTILES_APART = 1.349
QUARTERS = (0.25, 0.5, 0.75)
# A spread of half the classes that is below this share of the deviation says that few make the
# deviation for all. A normal distribution has 1, Laplace's 0.73, Student's with 3 degrees 0.65.
SMALLEST_SPREAD = 0.4


def psi(
    kappa_K: torch.Tensor, count_K: torch.Tensor, margin: KappaFace, embedding_size: int
) -> torch.Tensor:
    """ψ of this shard's classes, float64, whatever the number of ranks. Collective.

    Args:
        kappa_K: NaN where the class was not measured.
        count_K: images of the class in the dataset.
    """
    measured_K, kappa_K = kappa_K.isfinite(), kappa_K.double()
    if margin.standardise == "robust":
        bins = bin_counts(kappa_K, margin, embedding_size)
        low, mean, high = (quantile(bins, share, margin, embedding_size) for share in QUARTERS)
        std = (high - low) / QUARTILES_APART
    else:
        mean, std = mean_and_deviation(kappa_K, margin, embedding_size)
    deviation_K = (_readings(kappa_K, margin, embedding_size) - mean).where(measured_K, 0.0)
    # Equal concentrations differ by rounding only: that is no spread to standardise by.
    z_K = torch.where(std > 1e-5 * mean, deviation_K / std, 0.0)
    if margin.standardise != "released":
        z_K = z_K.clamp(-LARGEST_DEVIATION, LARGEST_DEVIATION)
    hard_K = torch.sigmoid(-margin.temperature * z_K)  # 1 − sigmoid, never rounded to 0
    share = margin.concentration_share
    return share * hard_K + (1.0 - share) * rarity(count_K, margin.count_scale)


def mean_and_deviation(
    kappa_K: torch.Tensor, margin: KappaFace, embedding_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of κ, or of what `standardise` reads in its place, over the
    measured classes of all ranks. Collective.
    """
    limit = largest_concentration(margin, embedding_size)
    sound_K = kappa_K.isfinite()
    released = margin.standardise == "released"
    if not released:
        # Identical images (ρ at its limit) must not stretch the scale for everyone else.
        sound_K = sound_K & (kappa_K < limit * (1.0 - 1e-5))
    value_K = _readings(kappa_K, margin, embedding_size)
    totals = torch.stack([sound_K.sum().double(), value_K.where(sound_K, 0.0).sum()])
    num_sound, total = parallel.all_reduce_sum(totals).unbind()
    mean = total / num_sound.clamp_min(1.0)
    squares = parallel.all_reduce_sum((value_K - mean).where(sound_K, 0.0).square().sum()[None])
    return mean, (squares / (num_sound - int(released)).clamp_min(1.0)).sqrt()


def largest_concentration(margin: KappaFace, embedding_size: int) -> float:
    """κ of a class whose photos are nearly identical."""
    # A number of the host: a copy to the device would be waited for.
    largest = torch.tensor(margin.max_resultant, dtype=torch.float64)
    return concentration(largest, embedding_size).item()


def _readings(kappa_K: torch.Tensor, margin: KappaFace, embedding_size: int) -> torch.Tensor:
    """What is standardised: κ, or 2 artanh ρ, nearly log κ, whose error does not grow with κ."""
    if margin.standardise == "logarithmic":
        return torch.asinh(2.0 * kappa_K.double() / embedding_size)
    return kappa_K.double()


def _bin_width(margin: KappaFace, embedding_size: int) -> float:
    """Of the bins' ratio, the logarithm."""
    return math.log(largest_concentration(margin, embedding_size) / SMALLEST_BIN) / (NUM_BINS - 1)


def bin_counts(kappa_K: torch.Tensor, margin: KappaFace, embedding_size: int) -> torch.Tensor:
    """Measured classes of all ranks by κ, in bins of equal ratio; last, how many were not measured.
    Collective.
    """
    measured_K = kappa_K.isfinite()
    bounded_K = kappa_K.double().where(measured_K, 1.0).clamp_min(SMALLEST_BIN)
    bin_K = ((bounded_K / SMALLEST_BIN).log() / _bin_width(margin, embedding_size)).long()
    bin_K = bin_K.clamp(0, NUM_BINS - 1).where(measured_K, NUM_BINS)
    counts = torch.zeros(NUM_BINS + 1, dtype=torch.float64, device=kappa_K.device)
    return parallel.all_reduce_sum(counts.index_add_(0, bin_K, torch.ones_like(bounded_K)))


def quantile(
    counts: torch.Tensor, share: float, margin: KappaFace, embedding_size: int
) -> torch.Tensor:
    """κ below which this share of the measured classes lies, as even within a bin, float64."""
    reached = counts[:-1].cumsum(0)
    wanted = share * reached[-1:]
    place = torch.searchsorted(reached, wanted).clamp_max(NUM_BINS - 1)
    inside = counts[place].clamp_min(1.0)
    part = (wanted - reached[place] + inside) / inside
    return SMALLEST_BIN * torch.exp(_bin_width(margin, embedding_size) * (place + part))[0]


def rarity(count_K: torch.Tensor, count_scale: float) -> torch.Tensor:
    """w^n = (1 + cos(π n / K_max)) / 2: 1 for the smallest classes, 0 for the largest."""
    count_K = count_K.double()
    largest = count_K.max() if len(count_K) else count_K.new_zeros(())
    largest = parallel.all_reduce_max(largest.reshape(1).clone()).clamp_min(1.0)
    return (1.0 + torch.cos(math.pi * count_K / (count_scale * largest))) / 2


def concentration_summary(
    kappa_K: torch.Tensor,
    margin_K: torch.Tensor,
    count_K: torch.Tensor,
    margin: KappaFace,
    embedding_size: int,
) -> dict[str, float]:
    """What the log says of the concentrations and of the margins that follow; empty before the
    first measurement. Collective. Quantiles are right to a bin's width.

    Returns:
        concentration_p05 to _p95 and concentration_std of the measured classes; neutral_share and
        measured_image_share, the share of classes that were not measured and of images in classes
        that were; margin_std of the measured classes, in radians or as the margin states.
    """
    measured_K = kappa_K.isfinite()
    count_K, margin_K = count_K.double(), margin_K.double().where(measured_K, 0.0)
    sums = torch.stack([count_K.sum(), count_K.where(measured_K, 0.0).sum(), margin_K.sum()])
    counts = bin_counts(kappa_K, margin, embedding_size)
    sums = parallel.all_reduce_sum(sums)
    *bins, num_neutral, images, measured_images, total = torch.cat([counts, sums]).tolist()
    num_measured = sum(bins)
    if num_measured == 0:
        return {}
    width = _bin_width(margin, embedding_size)
    plain = replace(margin, standardise="measured")
    _, std = mean_and_deviation(kappa_K.double(), plain, embedding_size)
    squares = (margin_K - total / num_measured).where(measured_K, 0.0).square().sum()
    margin_variance = parallel.all_reduce_sum(squares[None]).item() / num_measured
    reached = torch.tensor(bins).cumsum(0) / num_measured
    middles = SMALLEST_BIN * torch.exp(width * (torch.arange(NUM_BINS) + 0.5))
    places = torch.searchsorted(reached, torch.tensor(list(QUANTILES.values())))
    numbers = dict(zip(QUANTILES, middles[places].tolist(), strict=True))
    return {
        **{f"concentration_{name}": value for name, value in numbers.items()},
        "concentration_std": std.item(),
        "neutral_share": num_neutral / (num_neutral + num_measured),
        "measured_image_share": measured_images / max(images, 1.0),
        "margin_std": margin_variance**0.5,
    }


def measured_line(numbers: dict[str, float]) -> str:
    """For the log: of how many classes and images the margins know the concentration.

    Args:
        numbers: those of `concentration_summary`; without them no class has been measured.
    """
    if "concentration_std" not in numbers:
        return (
            "KappaFace has measured no class: none has shown two photos in one epoch of a window;"
            " margins follow the number of photos alone"
        )
    return (
        f"KappaFace has measured {1.0 - numbers['neutral_share']:.1%} of the classes, with"
        f" {numbers['measured_image_share']:.1%} of the images: standard deviation of their"
        f" concentrations {numbers['concentration_std']:.3g}, of their margins"
        f" {numbers['margin_std']:.3g}"
    )


def narrow_margins(numbers: dict[str, float]) -> str | None:
    """A warning where the middle half of the measured classes has nearly one and the same margin.

    Args:
        numbers: those of `concentration_summary`.
    """
    if "concentration_std" not in numbers:
        return None
    apart = numbers["concentration_p75"] - numbers["concentration_p25"]
    std = numbers["concentration_std"]
    if apart >= SMALLEST_SPREAD * QUARTILES_APART * std:
        return None
    return (
        f"KappaFace hardly tells classes apart: the concentrations of the middle half lie within"
        f" {apart:.3g}, while a few extreme ones make a standard deviation of {std:.3g}; look at"
        " the largest in tools/margin_report.py (photos of one person that are nearly equal), drop"
        " duplicates, or lower margin.max_resultant so that they count as such"
    )
