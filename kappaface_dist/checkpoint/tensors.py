"""Checkpoints: the only file that saves and loads with torch.distributed.checkpoint.

A checkpoint is a folder with the tensors, written by all ranks together, their index `.metadata`,
`state.json` with the numbers, and `SHA256SUMS` over all of it. Tensors with a row per class are
stored as one of all classes each, so any number of ranks can read them back.
Shapes: C all classes, K classes of this shard, X anything.
"""

import inspect
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from kappaface_dist.checkpoint.folder import (
    NUMBERS,
    check_undamaged,
    checksum,
    damages,
    part_folder,
    publish,
    write_synced,
)
from kappaface_dist.checkpoint.index import INDEX, read_metadata
from kappaface_dist.checkpoint.one_state import NumClasses, Tensors, classes_of, one_state
from kappaface_dist.checkpoint.pieces import PiecePlanner
from kappaface_dist.checkpoint.stored import stored_piece
from kappaface_dist.parallel import ranks as parallel

logger = logging.getLogger(__name__)


def write(
    folder: Path,
    state: dict[str, torch.Tensor],
    numbers: dict[str, Any],
    group: dist.ProcessGroup | None = None,
    planner: PiecePlanner | None = None,
) -> None:
    """Write a checkpoint, which appears whole or not at all; collective.

    Args:
        folder: its own folder, made here.
        state: from `one_state`.
        numbers: anything that JSON holds, the same on every rank.
        group: the ranks; a group of its own for a thread beside the training.
        planner: where the tensors may change before all of them are written.

    Raises:
        RuntimeError: on every rank, when one of them could not write its part.
    """
    part = part_folder(folder)

    def prepare() -> None:
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        write_synced(part / NUMBERS, json.dumps(numbers, indent=2) + "\n")

    def on_rank0(function: Any) -> None:
        parallel.agree(lambda: function() if parallel.rank() == 0 else None, group)

    try:
        on_rank0(prepare)
        with _quiet():
            dcp.save(
                state, checkpoint_id=part, process_group=group, planner=planner or PiecePlanner()
            )
        # A rank's files carry its number; rank 0 has the index and the numbers beside them.
        own = [*part.glob(f"__{parallel.rank()}_*")]
        if parallel.rank() == 0:
            own += [part / INDEX, part / NUMBERS]
        sums = parallel.agree(lambda: {path.name: checksum(path) for path in own}, group)
        checksums = {k: v for one in parallel.gather_objects(sums, group) for k, v in one.items()}
        on_rank0(lambda: publish(folder, checksums))
    except dcp.CheckpointException as error:
        on_rank0(lambda: shutil.rmtree(part, ignore_errors=True))
        rank, (cause, _) = next(iter(error.failures.items()))
        raise RuntimeError(f"rank {rank} could not write {part}: {cause}") from error
    except OSError as error:
        raise RuntimeError(f"{part} could not be written: {error}") from error


def load(folder: Path, replicated: Tensors, sharded: Tensors, num_classes: NumClasses) -> None:
    """Read a checkpoint into the given tensors, in place; collective.

    Raises:
        ValueError: the checkpoint holds other tensors, or tensors of other shapes.
    """
    shapes = {name: list(tensor.shape) for name, tensor in replicated.items()}
    shapes |= {
        name: [classes_of(num_classes, name), *tensor.shape[1:]] for name, tensor in sharded.items()
    }
    _check_shapes(folder, parallel.agree(lambda: stored_shapes(folder)), shapes)
    say_conversions(folder, sharded)
    _read(folder, one_state(replicated, sharded, num_classes))


def load_alone(folder: Path, replicated: Tensors) -> None:
    """Read replicated tensors in place, in this process without the others.

    The checksums of what is read are verified first; other ranks' files need not be right.

    Raises:
        ValueError: the checkpoint is not complete or damaged, or holds other tensors, or of other
            shapes.
    """
    places = read_metadata(folder).storage_data
    needed = {str(place.relative_path) for key, place in places.items() if key.fqn in replicated}
    check_undamaged(folder, {INDEX, NUMBERS, *needed})
    shapes = {name: list(tensor.shape) for name, tensor in replicated.items()}
    _check_shapes(folder, stored_shapes(folder), shapes)
    _read(folder, dict(replicated), alone=True)


def say_conversions(folder: Path, sharded: Tensors) -> None:
    """Warn of what a checkpoint holds of a head's state in another number type, or for nothing."""
    for name, (_, stored) in sorted(stored_tensors(folder).items()) if sharded else ():
        if name not in sharded:
            head, of_optimizer, _ = name.partition(".optimizer.")
            if of_optimizer and f"{head}.weight" in sharded:
                logger.warning("%s holds %s, which this run does not use: left out", folder, name)
        elif stored != sharded[name].dtype:
            now = str(sharded[name].dtype).removeprefix("torch.")
            then = str(stored).removeprefix("torch.")
            text = "%s holds %s in %s, this run in %s: converted, rounded to the nearest"
            logger.warning(text, folder, name, then, now)


def _check_shapes(
    folder: Path, stored: dict[str, list[int]], expected: dict[str, list[int]]
) -> None:
    for name, shape in expected.items():
        if name not in stored:
            raise ValueError(
                f"checkpoint {folder} has no tensor {name}: it is of another model or optimizer;"
                " start in another run folder"
            )
        if stored[name] != shape:
            raise ValueError(
                f"checkpoint {folder} holds {name} of shape {stored[name]}, this model has {shape}:"
                " it is of another model or dataset; start in another run folder"
            )


def _read(folder: Path, state: dict[str, torch.Tensor], *, alone: bool = False) -> None:
    """Fill tensors from the checkpoint, which holds them all; alone: in this process only."""
    try:
        with _quiet():
            if not alone or not dist.is_initialized():
                dcp.load(state, storage_reader=_Reader(folder))
            elif "no_dist" in inspect.signature(dcp.load).parameters:
                dcp.load(state, storage_reader=_Reader(folder), no_dist=True)
            else:  # torch 2.6
                dcp.load_state_dict(state, _Reader(folder), no_dist=True)
    except dcp.CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        text = " ".join(str(cause).split())
        raise ValueError(
            f"checkpoint {folder} cannot be read on rank {rank} ({type(cause).__name__}: {text}):"
            " restore it, or take another"
        ) from error


def verify(folder: Path) -> list[str]:
    """What is wrong with a checkpoint's files; the ranks share the reading; collective."""
    parts = parallel.gather_objects(damages(folder, parallel.rank(), parallel.world_size()))
    return [problem for part in parts for problem in part]


def stored_tensors(folder: Path) -> dict[str, tuple[list[int], torch.dtype]]:
    """Shape and type of every tensor in a checkpoint, by name."""
    index = cast(dict[str, TensorStorageMetadata], read_metadata(folder).state_dict_metadata)
    return {name: (list(entry.size), entry.properties.dtype) for name, entry in index.items()}


def stored_shapes(folder: Path) -> dict[str, list[int]]:
    """Shape of every tensor in a checkpoint, by name."""
    return {name: shape for name, (shape, _) in stored_tensors(folder).items()}


class _Reader(dcp.FileSystemReader):
    """torch's reader would run whatever program the index is, and copy every part in memory."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._index = read_metadata(Path(self.path))
        assert self._index.storage_meta is not None
        self._index.storage_meta.load_id = self.load_id
        return self._index

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            part = stored_piece(Path(self.path), self._index, item.storage_index)
            for dimension, (first, length) in enumerate(
                zip(item.storage_offsets, item.lengths, strict=True)
            ):
                part = part.narrow(dimension, first, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(part)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a process group torch warns that it takes one process for granted: it may.

    Older torch has another sentence for it, and warns of load_state_dict, which alone can do it.
    """
    with warnings.catch_warnings():
        for message in ("torch.distributed is (disabled|unavailable)", "`load_state_dict` is depr"):
            warnings.filterwarnings("ignore", message=message)
        yield
