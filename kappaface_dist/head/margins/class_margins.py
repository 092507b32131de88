"""The margins of a shard's classes, and all that a margin remembers between steps.

Shapes: K classes of this shard.
"""

import math

import numpy as np
import torch

from kappaface_dist.head.margins import KappaFace, Margin, MarginState
from kappaface_dist.head.margins.concentration import ClassStatistics
from kappaface_dist.parallel import ranks as parallel


class ClassMargins:
    """One margin per class of this shard, fixed or refreshed from the class statistics.

    Attributes:
        margin_K: the margins, fp32.
        state: the margin's small tensors, equal on all ranks.
        statistics: of the classes, where the margin follows them.
        num_refreshes: windows that have ended.
    """

    def __init__(
        self,
        margin: Margin,
        classes: range,
        embedding_size: int,
        images_per_class: np.ndarray | None,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.margin = margin
        self.num_refreshes = 0
        self.statistics: ClassStatistics | None = None
        if isinstance(margin, KappaFace):
            count_K = np.ones(len(classes), np.int64)
            if images_per_class is not None:
                count_K = np.array(images_per_class[classes.start : classes.stop])
            self.statistics = ClassStatistics(
                torch.from_numpy(count_K), embedding_size, margin, device
            )
            self.margin_K = self.statistics.margins(refreshed=False)
        else:
            self.margin_K = torch.full((len(classes),), margin.class_margin, device=device)
        self.state: MarginState = {
            name: torch.tensor(value, dtype=dtype, device=device)
            for name, value in margin.init_state().items()
        }

    @torch.no_grad()
    def refresh(self) -> None:
        """End a window of the class statistics: new concentrations, new margins. Collective."""
        if self.statistics is not None:
            self.statistics.refresh()
            self.num_refreshes += 1
            self.margin_K.copy_(self.statistics.margins(refreshed=True))

    def end_step(self, num_steps: int) -> None:
        """Refresh if a window of `margin.refresh_steps` steps ends with this many steps done."""
        window = self.margin.refresh_steps if isinstance(self.margin, KappaFace) else 0
        if window and num_steps % window == 0:
            self.refresh()

    def end_epoch(self) -> None:
        """Refresh if a window is an epoch."""
        if isinstance(self.margin, KappaFace) and not self.margin.refresh_steps:
            self.refresh()

    def summary(self, num_classes: int) -> dict[str, float]:
        """Smallest, mean and largest margin over the classes of all ranks, and the quantiles of
        their concentrations, if there are any. Collective.
        """
        margin_K = self.margin_K.double()
        extremes = torch.full((2,), -math.inf, dtype=torch.float64, device=margin_K.device)
        if len(margin_K):
            extremes = torch.stack([-margin_K.min(), margin_K.max()])
        parallel.all_reduce_max(extremes)
        total = parallel.all_reduce_sum(margin_K.sum().reshape(1))
        return {
            "margin_min": -extremes[0].item(),
            "margin_mean": total.item() / num_classes,
            "margin_max": extremes[1].item(),
            **({} if self.statistics is None else self.statistics.summary()),
        }

    def sharded_state(self) -> dict[str, torch.Tensor]:
        """The live tensors with a row per class of this shard."""
        statistics = {} if self.statistics is None else self.statistics.state()
        return {"margin": self.margin_K} | {f"statistics.{k}": t for k, t in statistics.items()}
