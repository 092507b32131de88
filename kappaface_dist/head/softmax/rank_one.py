"""Training accuracy: the share of images nearest to their own class's centre of all.

Taken from the first pass's own products, chunk by chunk: no further matrix product, no G x K
tensor. It costs one look at each chunk and one all-reduce of [G], and only in steps that ask.
Shapes: G images on all ranks, R rows of one chunk.
"""

import torch

from kappaface_dist.parallel import ranks as parallel


class NearestNegatives:
    """The largest cosine of each image with another class's centre, so far; before any margin."""

    def __init__(self, num_images: int, like: torch.Tensor):
        self.cosine_G = like.new_full((num_images,), -torch.inf)

    def see(
        self, product_GR: torch.Tensor, inverse_R: torch.Tensor, column_G: torch.Tensor, first: int
    ) -> None:
        """Look at a chunk: e_i·w_j, 1/‖w_j‖, the targets' columns, the chunk's first row."""
        cosine_GR = product_GR * inverse_R
        column_G1 = (column_G - first)[:, None]
        # Compared, not indexed: indexing by a mask would make a GPU wait.
        is_target_GR = column_G1 == torch.arange(cosine_GR.shape[1], device=column_G.device)
        cosine_GR.masked_fill_(is_target_GR, -torch.inf)
        torch.maximum(self.cosine_G, cosine_GR.amax(dim=1), out=self.cosine_G)


class RankOne:
    """Counts over the micro-batches of a step, from `start` to `take`."""

    def __init__(self) -> None:
        self.active = False
        self._right: torch.Tensor | None = None
        self._num_images = 0

    def start(self) -> None:
        """Count from now on."""
        self.active, self._right, self._num_images = True, None, 0

    def begin_batch(self, embedding_GD: torch.Tensor) -> NearestNegatives | None:
        """What the first pass is to show its products to; None while nobody asks."""
        return NearestNegatives(len(embedding_GD), embedding_GD) if self.active else None

    def end_batch(
        self, nearest: NearestNegatives | None, cosine_G: torch.Tensor, owned_G: torch.Tensor
    ) -> None:
        """Compare with the targets' cosines of the images whose class is here; collective."""
        if nearest is None:
            return
        nearest_G = parallel.all_reduce_max(nearest.cosine_G)
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
