"""What a run does beside its steps, on a GPU that is not here: the most bytes that each takes.

Inside `pretend_ranks` and `pretend_gpu`: the code is the run's own, the tensors have their real
sizes and hold nothing. Of a checkpoint on the disk only its index is made up.
Shapes: C all classes, K classes of this shard, X anything.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from kappaface_dist.checkpoint import tensors as checkpoint
from kappaface_dist.checkpoint import transplant
from kappaface_dist.checkpoint.pieces import HostCopies, row_ranges
from kappaface_dist.config.keys import Config
from kappaface_dist.head import PartialFC
from kappaface_dist.head.checks import BatchEvidence
from kappaface_dist.planning.device_watch import DeviceWatch
from kappaface_dist.planning.made_up_job import made_up_job, only_head
from kappaface_dist.planning.memory import JobSize
from kappaface_dist.planning.memory_meter import MemoryMeter
from kappaface_dist.planning.pretend_gpu import DEVICE, pretend_gpu
from kappaface_dist.planning.rehearsal import rehearse_steps
from kappaface_dist.training.build import Learner
from kappaface_dist.training.loss_guard import Evidence, likely_cause

Tensors = dict[str, torch.Tensor]
NOWHERE = Path("nowhere")
# What a diagnosis finds of a batch in which nothing is wrong, so that it looks at the centres.
SOUND_BATCH = Evidence(0, 1, -1, 1, (BatchEvidence(-1, -1, -1, 1),))


def rehearse_without_a_gpu(config: Config, size: JobSize) -> dict[str, Any]:
    """`rehearsal.rehearse` on fake tensors, without its times; inside `pretend_ranks`.

    Returns:
        Beside what a rehearsal reports: operation_bytes, (device, host) by operation.
    """
    with pretend_gpu() as watch:
        with MemoryMeter(DEVICE.type) as device, MemoryMeter("cpu") as host:
            job = made_up_job(config, size.num_classes, DEVICE)
        start = (device.peak_bytes - device.live_bytes, host.peak_bytes - host.live_bytes)
        report = rehearse_steps(job, fake=True)
        operations = {"start": start} | operation_bytes(job, watch)
    for name in ("loss", "seconds", "seconds_by_part"):
        report.pop(name)
    return report | {"operation_bytes": operations}


def operation_bytes(job: Learner, watch: DeviceWatch) -> dict[str, tuple[int, int]]:
    """(bytes on the device, on the host) that each operation takes beside what was there."""
    head, config = only_head(job), job.config
    sharded = {f"head.{name}": tensor for name, tensor in head.sharded_state().items()}
    watch.value = 1.0  # whatever is asked of the device is so: finite, say
    copies = HostCopies(config.checkpoint.host_bytes)

    def save() -> None:
        copies.take(sharded)

    functions: dict[str, Callable[[], Any]] = {
        "layout of the centres": lambda: head.weight_KD,
        "epoch's end": head.end_epoch,
        "log line": head.summary,
        "diagnosis": lambda: likely_cause(job, SOUND_BATCH, 0.1),
        "save": save,
        "load": lambda: _load(sharded),
        "head.init": lambda: _take_over(head),
    }
    found = {}
    for name, function in functions.items():
        with MemoryMeter(job.device.type) as device, MemoryMeter("cpu") as host:
            function()
        found[name] = (device.peak_bytes, host.peak_bytes)
    return found


def made_up_index(shapes: dict[str, torch.Size], tensors: Tensors) -> Metadata:
    """The index of a checkpoint with tensors of these shapes, in the pieces that a save makes."""
    entries: dict[str, Any] = {}
    places = {}
    for name, shape in shapes.items():
        dtype, chunks = tensors[name].dtype, []
        for first, last in row_ranges(shape, dtype.itemsize):
            offsets = torch.Size([first, *[0] * (len(shape) - 1)])
            chunks.append(ChunkStorageMetadata(offsets, torch.Size([last - first, *shape[1:]])))
            places[MetadataIndex(name, offsets)] = SimpleNamespace(relative_path="made up")
        entries[name] = TensorStorageMetadata(TensorProperties(dtype), shape, chunks)
    return Metadata(entries, storage_data=places, storage_meta=StorageMeta())


def _load(sharded: Tensors) -> None:
    """`checkpoint.load` for this rank alone: the other ranks' part of it are words."""
    index = made_up_index({name: tensor.shape for name, tensor in sharded.items()}, sharded)
    with _on_disk(checkpoint, index):
        checkpoint.load_alone(NOWHERE, sharded)


def _take_over(head: PartialFC) -> None:
    state = {f"head.{name}": tensor for name, tensor in head.sharded_state().items()}
    state |= {f"head.{name}": tensor for name, tensor in head.replicated_state().items()}
    shapes = {
        name: torch.Size([head.num_classes, *tensor.shape[1:]]) if tensor.dim() else tensor.shape
        for name, tensor in state.items()
    }
    index = made_up_index(shapes, state)
    numbers = {"head": head.counters()}
    with _on_disk(checkpoint, index), _on_disk(transplant, index), ExitStack() as stack:
        replace = mock.patch.object
        stack.enter_context(replace(checkpoint, "verify", lambda _: []))
        stack.enter_context(replace(checkpoint, "load", lambda *_: None))
        stack.enter_context(
            replace(transplant.checkpoint_folder, "read_numbers", lambda _: numbers)
        )
        transplant.take_over(head, NOWHERE, None)


@contextmanager
def _on_disk(module: Any, index: Metadata) -> Iterator[None]:
    """As if a checkpoint with this index were there, for a module that reads it."""

    def piece(_: Path, index: Metadata, key: MetadataIndex) -> torch.Tensor:
        entry = index.state_dict_metadata[key.fqn]
        assert isinstance(entry, TensorStorageMetadata)
        sizes = next(chunk.sizes for chunk in entry.chunks if chunk.offsets == key.offset)
        return torch.empty(sizes, dtype=entry.properties.dtype)

    def pieces(folder: Path, index: Metadata, name: str) -> Iterator[tuple[Any, torch.Tensor]]:
        entry = index.state_dict_metadata[name]
        assert isinstance(entry, TensorStorageMetadata)
        for chunk in entry.chunks:
            yield chunk, piece(folder, index, MetadataIndex(name, chunk.offsets))

    made_up = {
        "read_metadata": lambda _: index,
        "check_undamaged": lambda *_: None,
        "stored_piece": piece,
        "stored_pieces": pieces,
    }
    with ExitStack() as stack:
        for name, stand_in in made_up.items():
            if hasattr(module, name):
                stack.enter_context(mock.patch.object(module, name, stand_in))
        yield
