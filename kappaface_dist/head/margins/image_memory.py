"""One embedding for every image of this shard's classes, as it was when the image was last seen.

    memory ← unit of (0.9 new + 0.1 memory)

Of the authors' code (memory.py), whose memory starts at random; here the first one is the image's
own. Class by class, the images of a class by their number in it. In bf16: 2 D bytes an image.
Shapes: G images on all ranks, D embedding size, K classes of this shard, J their images.
"""

import numpy as np
import torch

NEWEST = 0.9


class ImageMemory:
    """The memory of this shard's classes.

    Args:
        count_K: images of each class.
        first_row: images of the classes before these.

    Attributes:
        rows: the places of row_JD among the images of all classes.
        row_JD: unit embeddings, bf16; zero where an image has not been seen.
    """

    def __init__(
        self,
        count_K: np.ndarray,
        embedding_size: int,
        device: torch.device,
        *,
        first_row: int = 0,
    ):
        self._count_K = torch.from_numpy(count_K).to(device=device, dtype=torch.int64)
        self._first_K = self._count_K.cumsum(0) - self._count_K
        num_images = int(count_K.sum())
        self.rows = range(first_row, first_row + num_images)
        # One row more, for what is not to be kept: to leave it out, the host would have to wait.
        self._row_JD = torch.zeros(
            num_images + 1, embedding_size, dtype=torch.bfloat16, device=device
        )

    @property
    def row_JD(self) -> torch.Tensor:
        return self._row_JD[:-1]

    def renew(
        self,
        unit_GD: torch.Tensor,
        local_id_G: torch.Tensor,
        slot_G: torch.Tensor,
        used_G: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take images in; returns what stands in the memory now, fp32, and which images it took.

        Args:
            unit_GD: unit embeddings; one that is not finite is not taken.
            slot_G: number of each image in its class; one that is not below the class's count is
                not taken.
            used_G: which images are meant; each of them once.
        """
        if not len(self._count_K):
            return unit_GD, torch.zeros_like(used_G)
        slot_G = slot_G.long()
        known_G = (slot_G >= 0) & (slot_G < self._count_K[local_id_G])
        used_G = used_G & known_G & unit_GD.isfinite().all(dim=1)
        row_G = torch.where(used_G, self._first_K[local_id_G] + slot_G, len(self._row_JD) - 1)
        earlier_GD = self._row_JD[row_G].float()
        mixed_GD = torch.nn.functional.normalize(
            NEWEST * unit_GD.float() + (1.0 - NEWEST) * earlier_GD, dim=1
        ).where(used_G[:, None], 0.0)
        self._row_JD.index_copy_(0, row_G, mixed_GD.to(self._row_JD.dtype))
        return mixed_GD, used_G
