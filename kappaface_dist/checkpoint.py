"""Checkpoints: the only file that knows torch.distributed.checkpoint and DTensor.

A checkpoint is a folder `step_<number>` with the tensors, written by all ranks together, and
`state.json` with the numbers. It is complete once `.metadata` is there, which is written last; an
incomplete one is never chosen. Tensors with a row per class are stored as one of all classes each,
so any number of ranks can read them back.
Shapes: C all classes, K classes of this shard, X anything.
"""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from kappaface_dist import parallel

Tensors = dict[str, torch.Tensor]


def save(
    folder: Path, replicated: Tensors, sharded: Tensors, num_classes: int, numbers: dict[str, Any]
) -> None:
    """Write a checkpoint; collective.

    Args:
        folder: its own folder, made here.
        replicated: tensors that are the same on every rank.
        sharded: tensors [K, ...] of this rank's classes, in torch.chunk's partition.
        num_classes: C.
        numbers: anything that JSON holds, the same on every rank.
    """

    def prepare() -> None:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")

    parallel.agree(lambda: prepare() if parallel.rank() == 0 else None)
    state = {**replicated, **_as_one(sharded, num_classes)}
    with _one_process_is_fine():
        dcp.save(state, checkpoint_id=folder, no_dist=not dist.is_initialized())


def load(folder: Path, replicated: Tensors, sharded: Tensors, num_classes: int) -> None:
    """Read a checkpoint into the given tensors, in place; collective.

    Raises:
        ValueError: the checkpoint holds other tensors, or tensors of other shapes.
    """
    shapes = {name: list(tensor.shape) for name, tensor in replicated.items()}
    shapes |= {name: [num_classes, *tensor.shape[1:]] for name, tensor in sharded.items()}
    _check_shapes(folder, parallel.agree(lambda: stored_shapes(folder)), shapes)
    state = {**replicated, **_as_one(sharded, num_classes)}
    with _one_process_is_fine():
        dcp.load(state, checkpoint_id=folder, no_dist=not dist.is_initialized())


def load_alone(folder: Path, replicated: Tensors) -> None:
    """Read replicated tensors in place, in this process without the others.

    Raises:
        ValueError: the checkpoint is not complete, or holds other tensors, or of other shapes.
    """
    shapes = {name: list(tensor.shape) for name, tensor in replicated.items()}
    _check_shapes(folder, stored_shapes(folder), shapes)
    with _one_process_is_fine():
        dcp.load(dict(replicated), checkpoint_id=folder, no_dist=True)


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


def load_numbers(folder: Path) -> dict[str, Any]:
    """The numbers that `save` was given."""
    try:
        return json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} is not a complete checkpoint: {error}") from error


def stored_shapes(folder: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor in a checkpoint."""
    if not (folder / ".metadata").is_file():
        raise ValueError(f"{folder} is not a complete checkpoint: it has no .metadata file")
    metadata = dcp.FileSystemReader(folder).read_metadata()
    return {
        name: list(entry.size)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """Without a process group torch warns that it takes one process for granted: it may."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _as_one(sharded: Tensors, num_classes: int) -> dict[str, torch.Tensor]:
    """View the ranks' rows as one distributed tensor of all classes each."""
    if not dist.is_initialized():
        return dict(sharded)
    mesh: DeviceMesh | None = None
    whole: dict[str, torch.Tensor] = {}
    for name, tensor_KX in sharded.items():
        if mesh is None:
            mesh = init_device_mesh(tensor_KX.device.type, (parallel.world_size(),))
        shape = torch.Size((num_classes, *tensor_KX.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        whole[name] = DTensor.from_local(
            tensor_KX, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
        )
    return whole


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> Tensors:
    """The optimizer's state by parameter name; empty before the first step."""
    names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"optimizer.{names[parameter]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def make_optimizer_tensors(
    folder: Path, optimizer: torch.optim.Optimizer, model: nn.Module
) -> Tensors:
    """Give a fresh optimizer the state tensors that the checkpoint has; `load` then fills them.

    The alternative, a step with zero gradients, would change momentum and weights.
    """
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        for key, entry in metadata.items():
            if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata):
                # Step counters live on the CPU, tensors of the parameter's shape beside it.
                device = parameter.device if entry.size == parameter.shape else "cpu"
                optimizer.state[parameter][key.removeprefix(prefix)] = torch.empty(
                    entry.size, dtype=entry.properties.dtype, device=device
                )
    return optimizer_tensors(optimizer, model)


def step_folder(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def complete_checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints below root, oldest first."""
    return sorted(
        path.parent for path in root.glob("step_*/.metadata") if path.parent.name[5:].isdigit()
    )


def delete_old(root: Path, keep: int) -> None:
    """Delete all but the last `keep` complete checkpoints, and incomplete ones; on rank 0 only."""
    if parallel.rank() != 0:
        return
    kept = complete_checkpoints(root)[-keep:]
    for folder in root.glob("step_*"):
        if folder not in kept:
            shutil.rmtree(folder)


def choose(root: Path, resume: str) -> Path | None:
    """The checkpoint to go on from, or None to start afresh.

    Args:
        root: the run's checkpoints.
        resume: "auto" for the last complete one, "never", or the path of a checkpoint.

    Raises:
        ValueError: nothing is at that path; or "never" in a folder that has checkpoints, which a
            later start would confuse with its own.
    """
    found = complete_checkpoints(root)
    if resume == "auto":
        return found[-1] if found else None
    if resume == "never":
        if found:
            raise ValueError(
                f"run.resume is never, but {found[-1]} exists: choose another run.name, or delete"
                f" {root}"
            )
        return None
    if not (Path(resume) / ".metadata").is_file():
        raise ValueError(f"run.resume is {resume}, which is not a complete checkpoint")
    return Path(resume)
