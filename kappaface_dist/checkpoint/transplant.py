"""A new head that takes over the identities of an earlier run: centres, momentum, statistics.

Shapes: C classes of this run, K classes of this shard, R of them at a time, L classes of a part of
the earlier run's.
"""

import logging
import re
from pathlib import Path

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import Metadata

from kappaface_dist.checkpoint import folder as checkpoint_folder
from kappaface_dist.checkpoint import tensors as checkpoint
from kappaface_dist.checkpoint.identity_map import read_identity_map
from kappaface_dist.checkpoint.index import read_metadata
from kappaface_dist.checkpoint.stored import stored_pieces
from kappaface_dist.head import PartialFC
from kappaface_dist.head.margins.chosen_centres import dominant_centres
from kappaface_dist.parallel import ranks as parallel

logger = logging.getLogger(__name__)
# Rows that are on their way at a time; of a large shard this share, for fewer and larger copies.
TAKEN_ROWS, TAKEN_SHARE = 256, 1 / 256


def head_prefix(dataset: str) -> str:
    """What the names of a head's tensors begin with in a checkpoint."""
    return f"head.{dataset}." if dataset else "head."


def stored_sub_centres(stored: dict[str, list[int]], prefix: str) -> int | None:
    """Centres a class of a checkpoint's head, from the shapes in it; None: it has no such head."""
    shape = stored.get(f"{prefix}weight")
    if shape is None:
        return None
    return shape[1] if len(shape) == 3 else 1


def take_over(head: PartialFC, folder: Path, identity_map: str | None, dataset: str = "") -> None:
    """Fill the rows of a fresh head from an earlier run's checkpoint; collective.

    An epoch of class statistics that the earlier run had begun is over: its images come again. Of
    several centres a class a head of one takes the dominant one, with its momentum.

    Args:
        identity_map: path of the map; without one, class i stays class i, and there are equally
            many.
        dataset: whose head it is, of an earlier run of several; that of a run of one is taken, too.

    Raises:
        ValueError: the checkpoint is damaged or of a head of another kind, or the map is wrong.
    """
    problems = checkpoint.verify(folder)
    if problems:
        raise ValueError(f"head.init {folder} is damaged: {problems[0]}")
    stored = parallel.agree(lambda: checkpoint.stored_shapes(folder))
    if "head.weight" in stored:
        dataset = ""
    prefix = head_prefix(dataset)
    if f"{prefix}weight" not in stored:
        found = [name.split(".")[1] for name in stored if re.fullmatch(r"head\.\w+\.weight", name)]
        raise ValueError(
            f"head.init {folder} has no {prefix}weight, it has heads of"
            f" {', '.join(sorted(found)) or 'no dataset'}: name the dataset as one of them"
        )
    state = {f"{prefix}{name}": tensor for name, tensor in head.sharded_state().items()}
    dominant_L = _dominant(folder, stored, prefix, head.softmax.sub_centres)
    for name, tensor in state.items():
        shape = stored.get(name)
        if dominant_L is not None and shape is not None and len(shape) > tensor.dim():
            shape = [shape[0], *shape[2:]]
        if shape is None or shape[1:] != list(tensor.shape[1:]):
            raise ValueError(
                f"head.init {folder} has {name} of shape {shape}, this head"
                f" {[head.num_classes, *tensor.shape[1:]]}: its margin, optimizer and embedding"
                " size must be the same"
            )
    checkpoint.say_conversions(folder, state)
    num_old = stored[f"{prefix}weight"][0]
    old_class_C = parallel.agree(lambda: _old_classes(identity_map, num_old, head.num_classes))
    old_class_K = old_class_C[head.classes.start : head.classes.stop]

    def take_rows() -> None:
        index = read_metadata(folder)
        row_K = np.argsort(old_class_K, kind="stable")
        old_K = old_class_K[row_K]
        for name, tensor in state.items():
            _take_rows(folder, index, name, tensor, old_K, row_K, dominant_L)

    parallel.agree(take_rows)
    _take_running_values(head, folder, stored, prefix)
    counters = parallel.agree(lambda: checkpoint_folder.read_numbers(folder))["head"]
    head.load_counters(counters[dataset] if dataset else counters)
    if (statistics := head.class_margins.statistics) is not None:
        statistics.end_epoch()  # the images that the earlier run had seen come again in this one
    if head.class_margins.memory is not None:
        logger.warning(
            "margin.source is memory: the images of %s are not those of this run, and their"
            " embeddings are not taken over; each begins with the first that it is given",
            folder,
        )
    stay = int((old_class_C >= 0).sum())
    logger.info(
        "%d of %d identities of %s stay, %d are new",
        stay,
        num_old,
        folder,
        head.num_classes - stay,
    )


def _dominant(
    folder: Path, stored: dict[str, list[int]], prefix: str, wanted: int
) -> torch.Tensor | None:
    """Of each of the earlier classes the centre to take; None: all of them.

    Raises:
        ValueError: the heads have different numbers of them, and this one has several.
    """
    found = stored_sub_centres(stored, prefix)
    if found == wanted:
        return None
    if wanted > 1:
        remedy = "set it to 1" if found == 1 else f"set it to {found}, or to 1 for the dominant one"
        raise ValueError(
            f"head.init {folder} has {found} centres a class, and head.sub_centres is {wanted}:"
            f" {remedy}"
        )
    name = f"{prefix}statistics.chosen"

    def read() -> torch.Tensor:
        dominant_L = torch.zeros(stored[name][0], dtype=torch.uint8)
        for chunk, piece_XA in stored_pieces(folder, read_metadata(folder), name):
            start = chunk.offsets[0]
            dominant_L[start : start + len(piece_XA)] = dominant_centres(piece_XA)
        return dominant_L

    logger.info("of the %s centres of each class of %s the dominant one is taken", found, folder)
    return parallel.agree(read)


def _take_running_values(
    head: PartialFC, folder: Path, stored: dict[str, list[int]], prefix: str
) -> None:
    """What the margin remembers beside its classes, such as AdaFace's mean norm."""
    state = {f"{prefix}{name}": tensor for name, tensor in head.replicated_state().items()}
    for name in sorted(state.keys() - stored.keys()):
        logger.warning("head.init %s has no %s: it starts afresh", folder, name)
    state = {name: tensor for name, tensor in state.items() if name in stored}
    checkpoint.load(folder, state, {}, {})


def _old_classes(identity_map: str | None, num_old: int, num_classes: int) -> np.ndarray:
    if identity_map is not None:
        return read_identity_map(identity_map, num_old, num_classes)
    if num_old != num_classes:
        raise ValueError(
            f"head.init has {num_old} classes and the dataset {num_classes}: say which is which in"
            " head.identity_map"
        )
    return np.arange(num_classes)


def _take_rows(
    folder: Path,
    index: Metadata,
    name: str,
    tensor_KX: torch.Tensor,
    old_K: np.ndarray,
    row_K: np.ndarray,
    dominant_L: torch.Tensor | None,
) -> None:
    """Each rank reads the rows of its own classes, some at a time, from whichever file has them.

    Args:
        old_K: the earlier classes, sorted; those of new classes are below 0.
        row_K: the rows that they become.
        dominant_L: of each earlier class the centre that is taken of several.
    """
    step = max(TAKEN_ROWS, int(len(old_K) * TAKEN_SHARE))
    for chunk, piece_LX in stored_pieces(folder, index, name):
        start = chunk.offsets[0]
        first, last = np.searchsorted(old_K, [start, start + len(piece_LX)])
        for low in range(first, last, step):
            here = slice(low, min(low + step, last))
            rows = piece_LX[torch.from_numpy(old_K[here] - start)]
            if dominant_L is not None and rows.dim() > tensor_KX.dim():
                rows = rows[torch.arange(len(rows)), dominant_L[old_K[here]].long()]
            place = torch.from_numpy(row_K[here]).to(tensor_KX.device)
            tensor_KX[place] = rows.to(tensor_KX.device, tensor_KX.dtype)
