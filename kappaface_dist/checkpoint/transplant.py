"""A new head that takes over the identities of an earlier run: centres, momentum, statistics.

Shapes: C classes of this run, K classes of this shard, L classes of a shard of the earlier run,
R of this shard at a time, X those of them that another rank shows.
"""

import logging
from pathlib import Path

import numpy as np
import torch

from kappaface_dist.checkpoint import folder as checkpoint_folder
from kappaface_dist.checkpoint import tensors as checkpoint
from kappaface_dist.checkpoint.identity_map import read_identity_map
from kappaface_dist.head import PartialFC
from kappaface_dist.head.shard import shard_classes
from kappaface_dist.parallel import ranks as parallel

logger = logging.getLogger(__name__)
PREFIX = "head."
# At a time from the host to the device: beside the head there is no room for a second one.
MOVED_ROWS = 65536


def take_over(head: PartialFC, folder: Path, identity_map: str | None) -> None:
    """Fill the rows of a fresh head from an earlier run's checkpoint; collective.

    Args:
        identity_map: path of the map; without one, class i stays class i, and there are equally
            many.

    Raises:
        ValueError: the checkpoint is damaged or of a head of another kind, or the map is wrong.
    """
    problems = checkpoint.verify(folder)
    if problems:
        raise ValueError(f"head.init {folder} is damaged: {problems[0]}")
    stored = parallel.agree(lambda: checkpoint.stored_shapes(folder))
    state = {f"{PREFIX}{name}": tensor for name, tensor in head.sharded_state().items()}
    for name, tensor in state.items():
        shape = stored.get(name)
        if shape is None or shape[1:] != list(tensor.shape[1:]):
            raise ValueError(
                f"head.init {folder} has {name} of shape {shape}, this head"
                f" {[head.num_classes, *tensor.shape[1:]]}: its margin, optimizer and embedding"
                " size must be the same"
            )
    num_old = stored[f"{PREFIX}weight"][0]
    old_class_C = parallel.agree(lambda: _old_classes(identity_map, num_old, head.num_classes))
    old_class_K = torch.from_numpy(old_class_C[head.classes.start : head.classes.stop])
    for name, tensor in state.items():
        _take_rows(folder, name, tensor, old_class_K, num_old)
    head.load_counters(parallel.agree(lambda: checkpoint_folder.read_numbers(folder))["head"])
    stay = int((old_class_C >= 0).sum())
    logger.info(
        "%d of %d identities of %s stay, %d are new",
        stay,
        num_old,
        folder,
        head.num_classes - stay,
    )


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
    folder: Path, name: str, tensor_KX: torch.Tensor, old_class_K: torch.Tensor, num_old: int
) -> None:
    """Each rank reads its share of the earlier classes and shows it to all, who pick theirs."""
    num_ranks = parallel.world_size()
    shards = [shard_classes(num_old, rank, num_ranks) for rank in range(num_ranks)]
    own_LX = torch.empty(
        (len(shards[parallel.rank()]), *tensor_KX.shape[1:]), dtype=tensor_KX.dtype
    )
    checkpoint.load(folder, {}, {name: own_LX}, num_old)
    for source, shard in enumerate(shards):
        if not len(shard):
            continue
        block_LX = (
            own_LX
            if source == parallel.rank()
            else own_LX.new_empty((len(shard), *tensor_KX.shape[1:]))
        )
        parallel.broadcast(block_LX, source)
        for first in range(0, len(tensor_KX), MOVED_ROWS):
            old_class_R = old_class_K[first : first + MOVED_ROWS]
            here_R = (old_class_R >= shard.start) & (old_class_R < shard.stop)
            rows_X = block_LX[old_class_R[here_R] - shard.start].to(tensor_KX.device)
            place_X = here_R.nonzero().flatten().to(tensor_KX.device)
            tensor_KX[first : first + MOVED_ROWS].index_copy_(0, place_X, rows_X)
