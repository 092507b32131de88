"""What a momentum encoder makes of a step's images, for the class statistics.

Shapes: X images of this rank in the whole step, D embedding size.
"""

import torch
import torch.nn.functional as F

from kappaface_dist.head.heads import Heads, heads_by_name, images_of_each
from kappaface_dist.head.partial_fc import PartialFC
from kappaface_dist.head.softmax.gathered import gather_batch, split_images


@torch.no_grad()
def see_encoded(
    head: PartialFC | Heads,
    embedding_XD: torch.Tensor,
    label_X: torch.Tensor,
    epoch_X: torch.Tensor | None = None,
) -> None:
    """Show the statistics of margins with `source: encoder` all images of a step, after
    `head.step` and before `end_epoch`. Collective: one all-gather.

    Args:
        epoch_X: as in `PartialFC.forward`.
    """
    heads, counts = list(heads_by_name(head).values()), images_of_each(head)
    unit_XD = F.normalize(embedding_XD.to(heads[0].state_dtype), dim=1)
    epoch_X = torch.zeros_like(label_X) if epoch_X is None else epoch_X
    batches = gather_batch(
        unit_XD,
        label_X,
        [{"epoch": own_X} for own_X in split_images(epoch_X.to(torch.int8), counts)],
        heads[0].softmax.dtype,
        [one.classes for one in heads],
        counts=counts,
    )
    for one, batch in zip(heads, batches, strict=True):
        margins = one.class_margins
        if not margins.sees_batches:
            no_cosine_G = torch.zeros_like(batch.embedding_GD[:, 0])
            margins.see(
                batch.embedding_GD, no_cosine_G, batch.local_id_G, batch.owned_G, batch.marks
            )
            margins.end_step(one.num_steps, encoded=True)
