"""From the sums over all classes to each image's loss and its derivatives: no collective, no state.

The formulas are those of `streaming.py`.
Shapes: G images on all ranks, D embedding size.
"""

from typing import NamedTuple

import torch

from kappaface_dist.head.softmax.rows import Rows
from kappaface_dist.head.softmax.settings import SMALLEST_EXPONENT, unit_rows


def target_cosines(
    embedding_GD: torch.Tensor, rows: Rows, row_G: torch.Tensor, owned_G: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ŵ_{y_i} [G, D], e_i·ŵ_{y_i} [G]); both zero where the class is on another rank."""
    if not len(rows):
        return torch.zeros_like(embedding_GD), torch.zeros_like(embedding_GD[:, 0])
    centre_GD, _ = unit_rows(rows.centres_of(row_G))
    centre_GD *= owned_G[:, None]
    return centre_GD, (embedding_GD * centre_GD).sum(dim=1).where(owned_G, 0.0)


class ImageLosses(NamedTuple):
    """Attributes:
    loss_G: log D_i − T_i.
    share_G: p_i − 1.
    log_denominator_G: log D_i, shifted as the logits are.
    """

    loss_G: torch.Tensor
    share_G: torch.Tensor
    log_denominator_G: torch.Tensor

    def weighted(self, weight_G: torch.Tensor) -> "ImageLosses":
        """The same of losses with weights: an image's goes where its 1/D goes."""
        return ImageLosses(
            self.loss_G * weight_G,
            self.share_G * weight_G,
            self.log_denominator_G - weight_G.log(),
        )


def image_losses(
    sum_G: torch.Tensor, logit_G: torch.Tensor, shift: torch.Tensor | float
) -> ImageLosses:
    """From Z exp(−shift) and T; shift: one for all images or one for each."""
    logit_G = logit_G - shift
    # log(exp(T) + Z) − T without cancellation, also where p is 1 within rounding. (softplus would
    # do, if it were not cut off at 20.)
    log_odds_G = sum_G.log() - logit_G
    loss_G = torch.logaddexp(log_odds_G, torch.zeros_like(log_odds_G))
    return ImageLosses(loss_G, -log_odds_G.sigmoid(), logit_G + loss_G)


def inverse_denominators(log_denominator_G: torch.Tensor) -> torch.Tensor:
    """1/D_i, shifted. It stays finite: a smaller D has no negatives, so there it meets zeros."""
    return (-log_denominator_G.clamp_min(SMALLEST_EXPONENT)).exp()


def embedding_gradients(
    sum_GD: torch.Tensor,
    centre_GD: torch.Tensor,
    log_denominator_G: torch.Tensor,
    target_slope_G: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """This shard's part of s U_i / D_i + (p_i − 1) (dT_i/dt_i) ŵ_{y_i}, in place of U."""
    gradient_GD = sum_GD.mul_((scale * inverse_denominators(log_denominator_G))[:, None])
    return gradient_GD.addcmul_(centre_GD, target_slope_G[:, None])


def norm_gradients(
    share_G: torch.Tensor,
    norm_slope_G: torch.Tensor | None,
    penalty_slope_G: torch.Tensor | None,
    owned_G: torch.Tensor,
) -> torch.Tensor | None:
    """d loss_i / d norm_i where the class is here, elsewhere 0; None if no term has the norm.

    Args:
        norm_slope_G: dT_i / d norm_i.
        penalty_slope_G: of what the margin adds to the loss.
    """
    gradient_G = penalty_slope_G
    if norm_slope_G is not None:
        own_G = share_G * norm_slope_G
        gradient_G = own_G if gradient_G is None else gradient_G + own_G
    return None if gradient_G is None else gradient_G.where(owned_G, 0.0)
