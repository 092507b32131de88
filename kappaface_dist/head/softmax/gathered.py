"""The batch of all ranks: one collective, and which of its classes are on this rank.

Shapes: B images on this rank, G images on all ranks, D embedding size.
"""

from dataclasses import dataclass

import torch

from kappaface_dist.head.margins.base import Marks
from kappaface_dist.parallel import ranks as parallel


@dataclass(frozen=True)
class GlobalBatch:
    """The images of all ranks, and which of their classes are on this one.

    Attributes:
        embedding_GD: unit embeddings, rounded as the matrix products will round them.
        norm_G: lengths of the embeddings, for a margin that uses them.
        owned_G: whether the class is on this rank.
        local_id_G: row of the class in the whole shard; some row if it is on another rank, to be
            masked.
        marks: what `ClassMargins.marks` asked for, by name.
    """

    embedding_GD: torch.Tensor
    label_G: torch.Tensor
    norm_G: torch.Tensor | None
    owned_G: torch.Tensor
    local_id_G: torch.Tensor
    marks: Marks


def gather_batch(
    unit_BD: torch.Tensor,
    label_B: torch.Tensor,
    marks: Marks,
    dtype: torch.dtype,
    classes: range,
    norm_B: torch.Tensor | None = None,
) -> GlobalBatch:
    """All ranks' embeddings, rounded to dtype, labels, norms and marks, for the shard of these
    classes.

    One collective: the bytes of a label, of a norm and of marks travel behind the embedding. Which
    marks there are, and of what type, all ranks must agree on.
    """
    given = {"embedding": unit_BD.to(dtype), "label": label_B.long(), "norm": norm_B, **marks}
    parts = {
        name: part if part.dim() == 2 else part[:, None]
        for name, part in given.items()
        if part is not None
    }
    as_bytes = [part.contiguous().view(torch.uint8) for part in parts.values()]
    gathered = parallel.all_gather_rows(torch.cat(as_bytes, dim=1))
    columns = gathered.split([part.shape[1] for part in as_bytes], dim=1)
    # Not contiguous(): a single row passes for contiguous wherever it begins.
    out = {
        name: column.clone(memory_format=torch.contiguous_format).view(part.dtype)
        for column, (name, part) in zip(columns, parts.items(), strict=True)
    }
    label_G = out["label"][:, 0]
    owned_G = (label_G >= classes.start) & (label_G < classes.stop)
    return GlobalBatch(
        embedding_GD=out["embedding"].to(unit_BD.dtype),
        label_G=label_G,
        norm_G=out["norm"][:, 0] if norm_B is not None else None,
        owned_G=owned_G,
        local_id_G=torch.where(owned_G, label_G - classes.start, 0),
        marks={name: out[name][:, 0] for name in marks},
    )
