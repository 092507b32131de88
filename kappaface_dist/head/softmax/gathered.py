"""The batch of all ranks: one collective, and which of its classes are on this rank.

Shapes: B images on this rank, G images on all ranks, D embedding size, X anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kappaface_dist.head.margins.base import Marks
from kappaface_dist.parallel import ranks as parallel

# Images of each head in a micro-batch of a rank, in which they stand one head's after another's;
# None: there is one head, and all are its own.
Counts = tuple[int, ...] | None


@dataclass(frozen=True)
class GlobalBatch:
    """A head's images of all ranks, and which of their classes are on this one.

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


def split_images(x_GX: torch.Tensor, counts: Counts) -> list[torch.Tensor]:
    """Each head's images, of one or several micro-batches of one or all ranks."""
    if counts is None:
        return [x_GX]
    assert len(x_GX) % sum(counts) == 0, f"{len(x_GX)} images in micro-batches of {counts}"
    blocks = x_GX.view(-1, sum(counts), *x_GX.shape[1:])
    return [part.flatten(0, 1) for part in blocks.split(counts, dim=1)]


def join_images(parts: Sequence[torch.Tensor], counts: Counts) -> torch.Tensor:
    """The inverse of `split_images`; of one head no copy is made."""
    if counts is None:
        return parts[0]
    blocks = [
        part.view(-1, count, *part.shape[1:]) for part, count in zip(parts, counts, strict=True)
    ]
    return torch.cat(blocks, dim=1).flatten(0, 1)


def gather_batch(
    unit_BD: torch.Tensor,
    label_B: torch.Tensor,
    marks: Sequence[Marks],
    dtype: torch.dtype,
    shards: Sequence[range],
    norm_B: torch.Tensor | None = None,
    counts: Counts = None,
) -> list[GlobalBatch]:
    """All ranks' embeddings, rounded to dtype, labels, norms and marks, of each head.

    One collective: the bytes of a label, of a norm and of marks travel behind the embedding. Which
    marks there are, and of what type, all ranks must agree on.

    Args:
        marks: of each head's own images.
        shards: each head's classes on this rank.
    """
    given = {"embedding": unit_BD.to(dtype), "label": label_B.long(), "norm": norm_B}
    given |= _all_marks(marks, split_images(label_B, counts), counts)
    parts = {
        name: part if part.dim() == 2 else part[:, None]
        for name, part in given.items()
        if part is not None
    }
    as_bytes = [part.contiguous().view(torch.uint8) for part in parts.values()]
    gathered = parallel.all_gather_rows(torch.cat(as_bytes, dim=1))
    batches = []
    for own, classes, own_marks in zip(split_images(gathered, counts), shards, marks, strict=True):
        columns = own.split([part.shape[1] for part in as_bytes], dim=1)
        # Not contiguous(): a single row passes for contiguous wherever it begins.
        out = {
            name: column.clone(memory_format=torch.contiguous_format).view(part.dtype)
            for column, (name, part) in zip(columns, parts.items(), strict=True)
        }
        label_G = out["label"][:, 0]
        owned_G = (label_G >= classes.start) & (label_G < classes.stop)
        batch = GlobalBatch(
            embedding_GD=out["embedding"].to(unit_BD.dtype),
            label_G=label_G,
            norm_G=out["norm"][:, 0] if norm_B is not None else None,
            owned_G=owned_G,
            local_id_G=torch.where(owned_G, label_G - classes.start, 0),
            marks={name: out[name][:, 0] for name in own_marks},
        )
        batches.append(batch)
    return batches


def _all_marks(
    marks: Sequence[Marks], labels: Sequence[torch.Tensor], counts: Counts
) -> dict[str, torch.Tensor | None]:
    """The marks of all heads' images by name, zero in a head that has none of that name."""
    kinds = {name: part.dtype for own in marks for name, part in own.items()}
    return {
        name: join_images(
            [
                own[name] if name in own else torch.zeros_like(label_B, dtype=dtype)
                for own, label_B in zip(marks, labels, strict=True)
            ],
            counts,
        )
        for name, dtype in kinds.items()
    }
