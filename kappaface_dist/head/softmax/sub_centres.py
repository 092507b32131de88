"""Several centres a class, of which an image meets the nearest (Deng et al., Sub-center ArcFace).

ECCV 2020: the cosine of an image with a class is the largest with its A centres, whose
rows lie next to each other, A·c to A·c + A − 1 of class c. All that follows (margin, softmax, both
gradients) is that of the nearest row alone: the others' logits become −∞, so that Q is 0 there.
Of equally near ones it is the first, in both passes.
Shapes: G images on all ranks, D embedding size, K classes of this shard, R rows of one chunk, C
classes of it, A centres of a class.
"""

import torch
import torch.nn.functional as F

from kappaface_dist.head.softmax.rows import Rows
from kappaface_dist.head.softmax.settings import unit_rows


def keep_nearest(logit_GR: torch.Tensor, sub_centres: int) -> None:
    """logit = −∞ in place but for the largest of each class's rows; R is whole classes.

    A class's centres are taken apart and put back by copies: on neighbours in a row each of the
    operations between would take many times as long. Sums stand for masks for the same reason.
    """
    logit_GCA = logit_GR.view(len(logit_GR), -1, sub_centres)
    apart_AGC = logit_GCA.permute(2, 0, 1).contiguous()
    bound_GC = apart_AGC.amax(dim=0)
    smallest = torch.finfo(logit_GR.dtype).smallest_normal
    for logit_GC in apart_AGC:
        # 0 where it is the largest, −∞ elsewhere.
        below_GC = F.threshold(logit_GC - bound_GC, -smallest, -torch.inf, inplace=True)
        logit_GC += below_GC
        # Where it was, no later one comes up to the bound.
        torch.maximum(bound_GC, below_GC.add_(1.0).mul_(torch.inf), out=bound_GC)
    logit_GCA.copy_(apart_AGC.permute(1, 2, 0))


def by_class(state: dict[str, torch.Tensor], sub_centres: int) -> dict[str, torch.Tensor]:
    """Views [K, A, ...] of tensors with a row for each centre, as ranks and checkpoints share them
    out; with one centre a class they stay [K, ...].
    """
    if sub_centres == 1:
        return state
    return {
        name: tensor.unflatten(0, (len(tensor) // sub_centres, sub_centres))
        for name, tensor in state.items()
    }


def nearest_targets(
    embedding_GD: torch.Tensor, rows: Rows, local_id_G: torch.Tensor, sub_centres: int
) -> torch.Tensor:
    """Which of its class's centres each image is nearest to [G], 0 to A − 1.

    Args:
        local_id_G: row of the class in a shard of one centre a class; any of an image whose class
            is on another rank.
    """
    if not len(rows):
        return torch.zeros_like(local_id_G)
    cosines = []
    for number in range(sub_centres):
        centre_GD, _ = unit_rows(rows.centres_of(local_id_G * sub_centres + number))
        cosines.append((embedding_GD * centre_GD).sum(dim=1))
    return torch.stack(cosines, dim=1).argmax(dim=1)
