"""Training accuracy: the share of images nearest to their own class's centre of all.

Taken from the first pass's own products, chunk by chunk: no further matrix product, no G x K
tensor. It costs one look at each chunk and one all-reduce of [G], and only in steps that ask.
Shapes: G images on all ranks, R rows of one chunk.
"""

import torch

from kappaface_dist.parallel import ranks as parallel


def nearest_negatives(
    product_GR: torch.Tensor,
    inverse_R: torch.Tensor,
    column_G: torch.Tensor,
    first: int,
    sub_centres: int = 1,
) -> torch.Tensor:
    """Each image's largest cosine [G] with the centres of other classes in a chunk.

    Args:
        product_GR: e_i·w_j.
        inverse_R: 1/‖w_j‖.
        column_G: the targets' columns; first is the chunk's first row.
    """
    cosine_GR = product_GR * inverse_R
    column_G1 = (column_G - first)[:, None]
    place_R = torch.arange(cosine_GR.shape[1], device=column_G.device)
    if sub_centres > 1:  # of a class none is another class's
        column_G1, place_R = (
            x.div(sub_centres, rounding_mode="floor") for x in (column_G1, place_R)
        )
    # Compared, not indexed: indexing by a mask would make a GPU wait.
    is_target_GR = column_G1 == place_R
    return cosine_GR.masked_fill_(is_target_GR, -torch.inf).amax(dim=1)


class RankOne:
    """Counts over the micro-batches of a step, from `start` to `take`."""

    def __init__(self) -> None:
        self.active = False
        self._right: torch.Tensor | None = None
        self._num_images = 0

    def start(self) -> None:
        """Count from now on."""
        self.active, self._right, self._num_images = True, None, 0

    def count(self, nearest_G: torch.Tensor, cosine_G: torch.Tensor, owned_G: torch.Tensor) -> None:
        """The images of a batch with a target cosine above nearest_G.

        Args:
            nearest_G: the largest of all shards, each as `negative_sums` finds it.
            cosine_G: the targets' cosines, where the class is on this rank (owned_G).
        """
        right = (owned_G & (cosine_G > nearest_G)).sum()
        self._right = right if self._right is None else self._right + right
        self._num_images += len(cosine_G)

    def take(self) -> float | None:
        """The share since `start`, over all ranks' images; None if there were none. Collective.

        With sampled negatives it is the share among the classes that were drawn.
        """
        self.active, right = False, self._right
        self._right = None
        if right is None:
            return None
        return parallel.all_reduce_sum(right.double()).item() / self._num_images
