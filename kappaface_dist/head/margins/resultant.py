"""The mean resultant length of a class from sums of its embeddings, its error, its concentration.

    ρ²  = Σ_e (‖S_e‖² − q_e) / Σ_e (a_e² − q_e)     plugin: Σ_e ‖S_e‖² / Σ_e a_e²
    κ   = ρ (D − ρ²) / (1 − ρ²)                     Banerjee et al., JMLR 2005, eq. 4.4

Shapes: K classes of this shard, D embedding size.
"""

import torch

from kappaface_dist.parallel import ranks as parallel


def squared_resultant(
    pair_sum_K: torch.Tensor,
    pair_weight_K: torch.Tensor,
    squared_weight_K: torch.Tensor,
    estimator: str,
) -> torch.Tensor:
    """ρ² of each class from Σ (‖S‖² − q), Σ (a² − q) and Σ q; not clamped, NaN without an image."""
    if estimator == "plugin":
        return (pair_sum_K + squared_weight_K) / (pair_weight_K + squared_weight_K)
    return pair_sum_K / pair_weight_K


def concentration(resultant_K: torch.Tensor, embedding_size: int) -> torch.Tensor:
    """κ from the mean resultant length r: r (D − r²) / (1 − r²)."""
    squared_K = resultant_K.square()
    return resultant_K * (embedding_size - squared_K) / (1.0 - squared_K)


def sampling_variance(
    squared_K: torch.Tensor, size_K: torch.Tensor, embedding_size: int
) -> torch.Tensor:
    """Variance of the unbiased estimate of ρ² from n independent images of a von Mises-Fisher law.

    The estimate is the mean cosine of all pairs, a U-statistic (Hoeffding 1948, eq. 5.18):
    [4 (n − 2) ζ1 + 2 ζ2] / (n (n − 1)), ζ1 = ρ² var t and ζ2 = E² t² + (1 − E t²)² / (D − 1) − ρ⁴,
    with t the cosine to the mean: E t = ρ, var t = dρ / dκ, of the κ above.

    Args:
        squared_K: ρ².
        size_K: n, at least 2; the effective number where images have weights.
    """
    slope_K = embedding_size + (embedding_size - 3) * squared_K + squared_K.square()
    across_K = (1.0 - squared_K).square() / slope_K
    second_K = squared_K + across_K
    one_K = squared_K * across_K
    rest_K = (1.0 - second_K).square() / max(embedding_size - 1, 1)
    two_K = second_K.square() + rest_K - squared_K.square()
    return (4.0 * (size_K - 2.0).clamp_min(0.0) * one_K + 2.0 * two_K) / (size_K * (size_K - 1.0))


def towards_mean(
    squared_K: torch.Tensor, size_K: torch.Tensor, sound_K: torch.Tensor, pseudo_count: float
) -> torch.Tensor:
    """ρ² drawn to the mean of all sound classes with so many images' weight. Collective."""
    sums = torch.stack([sound_K.sum().double(), squared_K.where(sound_K, 0.0).sum()])
    num_sound, total = parallel.all_reduce_sum(sums).unbind()
    drawn_K = (pseudo_count * total / num_sound + size_K * squared_K) / (pseudo_count + size_K)
    return torch.where(sound_K, drawn_K, squared_K)


def empirical_bayes(
    squared_K: torch.Tensor, size_K: torch.Tensor, sound_K: torch.Tensor, embedding_size: int
) -> torch.Tensor:
    """ρ² drawn to the mean m of all sound classes as far as its sampling error asks. Collective.

    (τ² ρ² + v m) / (τ² + v), v the `sampling_variance` at m, τ² the variance of the classes' true
    ρ²: what is left of the seen one without v, classes weighing 1 / v. For m they weigh
    1 / (τ² + v) (DerSimonian and Laird, Controlled Clinical Trials 1986).
    """
    zero_K = torch.zeros_like(squared_K)
    seen_K = squared_K.where(sound_K, zero_K)
    sums = torch.stack([sound_K.sum().double(), seen_K.sum()])
    num_sound, total = parallel.all_reduce_sum(sums).unbind()
    mean = total / num_sound.clamp_min(1.0)
    variance_K = sampling_variance(mean, size_K.clamp_min(2.0), embedding_size)
    # Of classes of few images little is known of τ² either: they weigh as they are known.
    weight_K = variance_K.reciprocal().where(sound_K, zero_K)
    sums = torch.stack([weight_K.sum(), (weight_K * seen_K).sum(), weight_K.square().sum()])
    weight, weighted, squares = parallel.all_reduce_sum(sums).unbind()
    centre = weighted / weight.clamp_min(1e-300)
    spread = parallel.all_reduce_sum((weight_K * (seen_K - centre).square()).sum()[None])[0]
    left = (spread - (num_sound - 1.0)) / (weight - squares / weight.clamp_min(1e-300))
    true_variance = torch.where(num_sound > 1, left, 0.0).clamp_min(0.0)
    weight_K = (true_variance + variance_K).reciprocal().where(sound_K, zero_K)
    sums = torch.stack([weight_K.sum(), (weight_K * seen_K).sum()])
    weight, weighted = parallel.all_reduce_sum(sums).unbind()
    centre = weighted / weight.clamp_min(1e-300)
    drawn_K = (true_variance * squared_K + variance_K * centre) / (true_variance + variance_K)
    return torch.where(sound_K, drawn_K, squared_K)
