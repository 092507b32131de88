"""Tensors with a row per image of a rank's classes, in a checkpoint that other ranks read back.

Classes have different numbers of images, so these rows do not lie as torch.chunk would lay them,
which is all that a DTensor can be. Each rank stores its own under a name that says which rows of
all they are.
Shapes: J images of this rank's classes, X anything.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import Metadata

from kappaface_dist.checkpoint.index import read_metadata
from kappaface_dist.checkpoint.stored import stored_pieces


@dataclass(frozen=True)
class ImageRows:
    """Attributes:
    row_JX: this rank's rows.
    rows: their places among those of all ranks.
    """

    row_JX: torch.Tensor
    rows: range


def named_pieces(images: dict[str, ImageRows]) -> dict[str, torch.Tensor]:
    """The tensors as a checkpoint holds them; those without a row are left out."""
    return {
        f"{name}.rows_{part.rows.start}_{part.rows.stop}": part.row_JX
        for name, part in images.items()
        if len(part.rows)
    }


def load_image_rows(folder: Path, images: dict[str, ImageRows]) -> None:
    """Read this rank's rows in place, whichever ranks have written them.

    Raises:
        ValueError: the checkpoint has none of them, or not all, or of another width.
    """
    index = read_metadata(folder)
    for name, part in images.items():
        missing = len(part.rows)
        for start, stop, key in _stored(index, name):
            if stop <= part.rows.start or start >= part.rows.stop:
                continue
            # Large ones are stored in several parts.
            for chunk, piece in stored_pieces(folder, index, key):
                if piece.shape[1:] != part.row_JX.shape[1:]:
                    raise ValueError(
                        f"checkpoint {folder} holds {key} with rows of {list(piece.shape[1:])},"
                        f" this model's have {list(part.row_JX.shape[1:])}: it is of another model;"
                        " start in another run folder"
                    )
                place = start + chunk.offsets[0]
                first = max(place, part.rows.start)
                last = min(place + len(piece), part.rows.stop)
                if first < last:
                    taken = piece[first - place : last - place].to(part.row_JX.device)
                    part.row_JX[first - part.rows.start : last - part.rows.start] = taken
                    missing -= last - first
        if missing:
            raise ValueError(
                f"checkpoint {folder} lacks {missing} of the {len(part.rows)} rows of {name} that"
                " this rank needs: it is of another margin or dataset; start in another run folder"
            )


def _stored(index: Metadata, name: str) -> Iterator[tuple[int, int, str]]:
    """(first row, row after the last, name) of each stored piece."""
    for key in index.state_dict_metadata:
        if found := re.fullmatch(re.escape(name) + r"\.rows_(\d+)_(\d+)", key):
            yield int(found[1]), int(found[2]), key
