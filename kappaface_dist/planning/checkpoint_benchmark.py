"""How long saving the head holds up the training, blocking and beside it."""

import shutil
import statistics
from pathlib import Path
from typing import Any

import torch

from kappaface_dist.checkpoint.saver import Saver
from kappaface_dist.head import PartialFC
from kappaface_dist.parallel import ranks as parallel


def measure_pauses(
    folder: Path, num_classes: int, num_repeats: int, device: torch.device
) -> dict[str, Any]:
    """Save the state of a KappaFace head with SGD both ways in turns; collective.

    Args:
        folder: made for this, and deleted.
    """
    state = PartialFC(num_classes, 512, device=device).sharded_state()
    own = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    pauses: dict[bool, list[float]] = {False: [], True: []}
    savers = {kind: Saver(folder, keep=1, best=None, asynchronous=kind) for kind in pauses}
    savers[True].reserve(state)
    for step in range(1, 2 * num_repeats + 1):
        kind = step % 2 == 0
        numbers = {"run": {"step": step}, "metrics": {}, "world_size": parallel.world_size()}
        parallel.barrier()
        savers[kind].save(step, {}, state, num_classes, numbers)
        # The slowest rank's pause is the training's.
        pauses[kind].append(max(parallel.gather_objects(savers[kind].pause)))
        savers[kind].finish()
    total = sum(parallel.gather_objects(own))
    if parallel.rank() == 0:
        shutil.rmtree(folder)
    return {
        "world_size": parallel.world_size(),
        "gigabytes": total / 1e9,
        "blocking_seconds": pauses[False],
        "asynchronous_seconds": pauses[True],
        "share": statistics.median(pauses[True]) / statistics.median(pauses[False]),
    }
