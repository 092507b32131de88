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
from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config
from kappaface_dist.head import PartialFC, partial_fc
from kappaface_dist.head.checks import BatchEvidence
from kappaface_dist.head.heads import heads_by_name
from kappaface_dist.head.shard import INIT_BLOCK, initial_centres
from kappaface_dist.planning.device_watch import DeviceWatch
from kappaface_dist.planning.made_up_job import made_up_job
from kappaface_dist.planning.memory import JobSize
from kappaface_dist.planning.memory_meter import MemoryMeter
from kappaface_dist.planning.pretend_gpu import DEVICE, pretend_gpu
from kappaface_dist.planning.rehearsal import rehearse_steps
from kappaface_dist.training.build import Learner
from kappaface_dist.training.head_log import head_numbers
from kappaface_dist.training.loss_guard import Evidence, likely_cause

Tensors = dict[str, torch.Tensor]
NOWHERE = Path("nowhere")
# What a diagnosis finds of a batch in which nothing is wrong, so that it looks at the centres.
SOUND_BATCH = BatchEvidence(-1, -1, -1, 1)


def rehearse_without_a_gpu(config: Config, size: JobSize) -> dict[str, Any]:
    """`rehearsal.rehearse` on fake tensors, without its times; inside `pretend_ranks`.

    Returns:
        Beside what a rehearsal reports: operation_bytes, (device, host) by operation.
    """
    with pretend_gpu() as watch:
        few = mock.patch.object(partial_fc, "initial_centres", _few_centres)
        with few, MemoryMeter(DEVICE.type) as device, MemoryMeter("cpu") as host:
            job = made_up_job(config, size.classes_of_each, DEVICE)
        start = (device.peak_bytes - device.live_bytes, host.peak_bytes - host.live_bytes)
        report = rehearse_steps(job, fake=True)
        operations = {"start": start} | operation_bytes(job, watch)
    for name in ("loss", "seconds", "seconds_by_part"):
        report.pop(name)
    return report | {"operation_bytes": operations}


def _few_centres(classes: range, size: int, *others: Any) -> torch.Tensor:
    """`initial_centres` of the first blocks alone, which the others are like."""
    few = classes[: 2 * INIT_BLOCK]
    weight_KD = torch.empty(len(classes), size, dtype=others[1], device=others[2])
    weight_KD[: len(few)] = initial_centres(few, size, *others)
    return weight_KD


def operation_bytes(job: Learner, watch: DeviceWatch) -> dict[str, tuple[int, int]]:
    """(bytes on the device, on the host) that each operation takes beside what was there."""
    heads = heads_by_name(job.head)
    sharded = {
        f"{transplant.head_prefix(name)}{key}": tensor
        for name, head in heads.items()
        for key, tensor in head.sharded_state().items()
    }
    evidence = Evidence(0, 1, -1, 1, (SOUND_BATCH,) * len(heads))
    watch.value = 1.0  # whatever is asked of the device is so: finite, say
    copies = HostCopies(job.config.checkpoint.host_bytes)

    def of_each(function: Callable[..., Any]) -> Callable[[], None]:
        def call() -> None:
            for name, head in heads.items():
                function(name, head)

        return call

    functions: dict[str, Callable[[], Any]] = {
        "layout of the centres": of_each(lambda _, head: head.weight_KD),
        "epoch's end": of_each(lambda _, head: head.end_epoch()),
        "a window's end": of_each(lambda _, head: head.refresh()),
        "log line": lambda: head_numbers(job.head),
        "diagnosis": lambda: likely_cause(job, evidence, 0.1),
        "save": lambda: copies.take(sharded),
        "load": lambda: _load(sharded),
        "head.init": of_each(_take_over),
    }
    if not any(own.margin.get("refresh_steps") for own in datasets(job.config).values()):
        functions.pop("a window's end")  # is an epoch's
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


def _take_over(dataset: str, head: PartialFC) -> None:
    tensors = head.sharded_state() | head.replicated_state()
    state = {f"{transplant.head_prefix(dataset)}{key}": tensor for key, tensor in tensors.items()}
    shapes = {
        name: torch.Size([head.num_classes, *tensor.shape[1:]]) if tensor.dim() else tensor.shape
        for name, tensor in state.items()
    }
    index = made_up_index(shapes, state)
    counters = head.counters()
    numbers = {"head": {dataset: counters} if dataset else counters}
    with _on_disk(checkpoint, index), _on_disk(transplant, index), ExitStack() as stack:
        replace = mock.patch.object
        stack.enter_context(replace(checkpoint, "verify", lambda _: []))
        stack.enter_context(replace(checkpoint, "load", lambda *_: None))
        stack.enter_context(
            replace(transplant.checkpoint_folder, "read_numbers", lambda _: numbers)
        )
        transplant.take_over(head, NOWHERE, None, dataset)


@contextmanager
def _on_disk(module: Any, index: Metadata) -> Iterator[None]:
    """As if a checkpoint with this index were there, for a module that reads it."""

    sizes: dict[tuple[str, torch.Size], torch.Size] = {}
    dtypes: dict[str, torch.dtype] = {}
    for name, entry in index.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        dtypes[name] = entry.properties.dtype
        sizes |= {(name, chunk.offsets): chunk.sizes for chunk in entry.chunks}

    def piece(_: Path, __: Metadata, key: MetadataIndex) -> torch.Tensor:
        assert key.offset is not None
        return torch.empty(sizes[key.fqn, key.offset], dtype=dtypes[key.fqn])

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
