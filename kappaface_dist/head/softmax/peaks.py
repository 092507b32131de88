"""A shift of its own for each image, where logits range too widely for one that suits all.

exp(logit − c) with one c must neither overflow at the largest possible logit nor vanish for an
image all of whose negatives are far away: then its loss would come out as 0, its gradient as 0 · ∞.
Where fp32 has no such c (`Softmax.needs_peaks`), image i has c_i, its largest logit among the
negatives: raised chunk by chunk, what was summed so far scaled down, and at the end over the ranks,
by one more all-reduce of [G].
Peaks are in base 2, as the logits are there. Shapes: G images on all ranks, D embedding size.
"""

import torch

from kappaface_dist.head.softmax.settings import LOG2_E, Softmax


def lowest_peaks(embedding_GD: torch.Tensor, softmax: Softmax) -> torch.Tensor | None:
    """The least that a logit can be [G]; None where one shift is enough for all images."""
    if not softmax.needs_peaks:
        return None
    return embedding_GD.new_full((len(embedding_GD),), -softmax.scale * LOG2_E)


def scale_down(before_G: torch.Tensor, now_G: torch.Tensor, *sums: torch.Tensor) -> None:
    """Sums [G, ...] that were shifted by before_G, in place to those shifted by now_G."""
    fall_G = (before_G - now_G).exp2_()
    for sum_GX in sums:
        sum_GX.mul_(fall_G.view(-1, *[1] * (sum_GX.dim() - 1)))


def to_common_peaks(
    common_G: torch.Tensor,
    peak_G: torch.Tensor,
    sum_G: torch.Tensor,
    sum_GD: torch.Tensor,
    parts: list[torch.Tensor],
    peaks: list[torch.Tensor],
) -> None:
    """All sums are brought to the peaks over all ranks, in place.

    Args:
        common_G: those.
        peak_G: this shard's, which sum_G and sum_GD are shifted by.
        parts: each chunk's part of sum_G, shifted by the one of peaks at its place.
    """
    scale_down(peak_G, common_G, sum_G, sum_GD)
    for part_G, before_G in zip(parts, peaks[: len(parts)], strict=True):
        scale_down(before_G, common_G, part_G)
