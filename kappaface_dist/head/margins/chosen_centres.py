"""How many of a class's images were nearest to each of its sub-centres: which one is dominant.

Clean images gather at one centre of their class, wrong labels and hard ones at the others (Deng et
al., Sub-center ArcFace, ECCV 2020). Each image counts where it was nearest when it was learnt from;
at each epoch's end all counts are halved, so that an early network's choice is soon outweighed.
Shapes: G images on all ranks, K classes of this shard, A centres of a class.
"""

import torch

from kappaface_dist.parallel import ranks as parallel


class ChosenCentres:
    """The counts of a shard's classes.

    Attributes:
        count_KA: fp32; of this epoch, and halves, quarters ... of those before.
    """

    def __init__(self, num_rows: int, sub_centres: int, device: torch.device):
        self.count_KA = torch.zeros(num_rows, sub_centres, device=device)

    def add(self, row_G: torch.Tensor, owned_G: torch.Tensor) -> None:
        """Count images.

        Args:
            row_G: A·class + centre of those whose class is here (owned_G), any row of the others.
        """
        if len(self.count_KA):
            self.count_KA.view(-1).index_add_(0, row_G, owned_G.to(self.count_KA.dtype))

    def end_epoch(self) -> None:
        self.count_KA *= 0.5

    def summary(self) -> dict[str, float]:
        """The share of the images that were at other centres than their class's dominant one; none
        before the first image. Collective.
        """
        count_KA = self.count_KA.double()
        sums_2 = count_KA.new_zeros(2)
        if len(count_KA):
            sums_2 = torch.stack([count_KA.amax(dim=1).sum(), count_KA.sum()])
        dominant, total = parallel.all_reduce_sum(sums_2).tolist()
        return {"non_dominant_share": 1.0 - dominant / total} if total else {}


def dominant_centres(count_XA: torch.Tensor) -> torch.Tensor:
    """Of each class the sub-centre with most images, int64 [X]; the first, where it has none."""
    return count_XA.argmax(dim=1)
