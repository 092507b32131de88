"""What a momentum encoder makes of a step's images, for the class statistics.

Shapes: X images of this rank in the whole step, D embedding size.
"""

import torch
import torch.nn.functional as F

from kappaface_dist.head.partial_fc import PartialFC
from kappaface_dist.head.softmax.gathered import gather_batch


@torch.no_grad()
def see_encoded(
    head: PartialFC,
    embedding_XD: torch.Tensor,
    label_X: torch.Tensor,
    epoch_X: torch.Tensor | None = None,
) -> None:
    """Show the statistics of a margin with `source: encoder` all images of a step, after
    `head.step` and before `head.end_epoch`. Collective: one all-gather.

    Args:
        epoch_X: as in `PartialFC.forward`.
    """
    unit_XD = F.normalize(embedding_XD.to(head.state_dtype), dim=1)
    epoch_X = torch.zeros_like(label_X) if epoch_X is None else epoch_X
    batch = gather_batch(
        unit_XD,
        label_X,
        {"epoch": epoch_X.to(torch.int8)},
        head.softmax.dtype,
        head.classes,
    )
    margins = head.class_margins
    no_cosine_G = torch.zeros_like(batch.embedding_GD[:, 0])
    margins.see(batch.embedding_GD, no_cosine_G, batch.local_id_G, batch.owned_G, batch.marks)
    margins.end_step(head.num_steps, encoded=True)
