"""Tiles that the second pass may leave out: one image by one chunk of centres.

The first pass leaves the share of every tile in its image's denominator, m_ix = Σ P_ij / D_i over
the negatives j of chunk x. The tiles with the smallest are left out as long as

    Σ m over those left out  ≤  skip_mass · Σ m over all,

so the gradients d loss / d ŵ_j lose terms whose lengths s m / G add up to at most that share of
those of all negatives. The bound is the computed sums' own, and holds on each rank and so over all
of them. The loss, the embeddings' gradient and the targets' terms stay exact.

No single logit is compared with a threshold: each may be negligible where together they are not.
Shapes: G images on all ranks, X chunks of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kappaface_dist.parallel import ranks as parallel


@dataclass(frozen=True)
class Tiles:
    """Which tiles of a batch the second pass takes.

    Attributes:
        kept_XG: true for those.
        mass_2: (of those left out, of all), float64.
    """

    kept_XG: torch.Tensor
    mass_2: torch.Tensor

    def images(self) -> list[torch.Tensor | None]:
        """For each chunk the images to take, in order; None: all. A GPU waits here, once."""
        order_XG = (~self.kept_XG).to(torch.uint8).argsort(dim=1, stable=True)
        num_images = self.kept_XG.shape[1]
        counts = self.kept_XG.sum(dim=1).tolist()
        return [
            None if count == num_images else order_G[:count]
            for order_G, count in zip(order_XG, counts, strict=True)
        ]


def choose_tiles(
    sums: list[torch.Tensor], log_denominator_G: torch.Tensor, skip_mass: float
) -> Tiles:
    """Leave out the smallest tiles, as many as skip_mass of the mass allows.

    Args:
        sums: for each chunk its part of Z [G].
        log_denominator_G: log D_i, shifted as the logits are.
    """
    mass_XG = torch.stack(sums).double() * (-log_denominator_G.double()).exp()
    sorted_T, order_T = mass_XG.flatten().sort(stable=True)
    reached_T = sorted_T.cumsum(0)
    total = reached_T[-1]
    left_out_T = reached_T <= skip_mass * total
    kept_T = torch.empty_like(left_out_T).scatter_(0, order_T, ~left_out_T)
    left_out = torch.where(left_out_T, sorted_T, 0.0).sum()
    return Tiles(kept_T.view_as(mass_XG), torch.stack([left_out, total]))


class Skipped:
    """What the second passes have left out since it was last asked for."""

    def __init__(self) -> None:
        self._sums_4: torch.Tensor | None = None

    def add(self, of_batches: Sequence[Tiles | None]) -> None:
        """Those of each batch; None: it took all."""
        for tiles in of_batches:
            if tiles is None:
                continue
            left_out = (~tiles.kept_XG).sum()
            numbers = torch.stack([left_out, torch.full_like(left_out, tiles.kept_XG.numel())])
            sums_4 = torch.cat([tiles.mass_2, numbers])
            self._sums_4 = sums_4 if self._sums_4 is None else self._sums_4 + sums_4

    def take(self, device: torch.device) -> dict[str, float]:
        """Shares of mass and tiles over all ranks, and begin anew; empty if none. Collective."""
        sums_4, self._sums_4 = self._sums_4, None
        if sums_4 is None:
            sums_4 = torch.zeros(4, dtype=torch.float64, device=device)
        mass, all_mass, tiles, all_tiles = parallel.all_reduce_sum(sums_4).tolist()
        if not all_tiles:
            return {}
        return {"skipped_mass": mass / max(all_mass, 1e-300), "skipped_tiles": tiles / all_tiles}
