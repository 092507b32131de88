"""Processes: the group, the device, and the few collectives that the rest of the package uses.

Everything here also works in one process with no process group (a plain `python launch/train.py`):
rank 0 of 1, and every collective is the identity.
Shapes: B images on this rank, G = N·B images on all N ranks, D embedding size, X anything.
"""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kappaface_dist.parallel.rendezvous import store_of_this_start

T = TypeVar("T")


def rank() -> int:
    """This process's number, 0 to world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train one model together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def start(timeout_minutes: float = 30.0, device_name: str | None = None) -> torch.device:
    """Join the group that torchrun describes in the environment, if there is one.

    Args:
        device_name: cpu, cuda, or for one process cuda:1; without it, cuda where there is a GPU.

    Returns:
        The device of this rank, as `own_device` has it. Raises what that does.
    """
    device = own_device(device_name)
    # The CPU backend beside NCCL carries what must not wait for the GPU: stop signals, errors.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        timeout = timedelta(minutes=timeout_minutes)
        dist.init_process_group(
            backend,
            timeout=timeout,
            store=store_of_this_start(timeout),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
        )
    return device


def own_device(device_name: str | None = None) -> torch.device:
    """One GPU per local rank where GPUs are meant, otherwise the CPU; device_name as in `start`.

    Raises:
        ValueError: the device is not here, or is one for several processes.
        RuntimeError: there are GPUs, but fewer than processes on this machine.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if number := _number_of_gpu(device_name):
        local_rank = int(number)
    if device_name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise RuntimeError(
            f"local rank {local_rank} has no GPU, this machine shows"
            f" {torch.cuda.device_count()}: start with a smaller --nproc_per_node"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _number_of_gpu(device_name: str | None) -> str:
    """Of cuda:1 the 1; empty where every process takes its own. Raises what `own_device` does."""
    if device_name in (None, "cpu"):
        return ""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = str(device_name).partition(":")[2]
    if num_gpus <= int(number or 0):
        raise ValueError(
            f"the device is {device_name}, and torch finds {num_gpus} GPUs: see that the driver is"
            " there (nvidia-smi) and that torch is a build for CUDA, or name cpu"
        )
    if number and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(
            f"the device is {device_name} for {os.environ['WORLD_SIZE']} processes: name cuda, of"
            " which each takes its own"
        )
    return number


def take_rank(rank: int, num_ranks: int, port: int) -> None:
    """Make this process one of num_ranks on this machine, as torchrun would: one thread each.

    For programs that start their processes themselves; `start` comes after it.
    """
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def call_on_ranks(
    function: Callable[[int, T, int | None], None], arguments: T, num_ranks: int
) -> None:
    """Call function(rank, arguments, port) in num_ranks processes of this machine and wait.

    Each begins with `take_rank`. For one rank, or where torchrun has started the processes already,
    function is called here, with rank 0 and port None. A ValueError or RuntimeError of a process
    comes out of here as such.
    """
    if num_ranks == 1 or "WORLD_SIZE" in os.environ:
        function(0, arguments, None)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        mp.spawn(function, (arguments, port), nprocs=num_ranks)
    except mp.ProcessRaisedException as error:
        # A user's mistake, or a fault of the environment, is one line here too.
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        if kind in ("ValueError", "RuntimeError"):
            raise (ValueError if kind == "ValueError" else RuntimeError)(message) from error
        raise


def stop() -> None:
    """Leave the group after all ranks have come this far."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def all_gather_rows(x_BX: torch.Tensor) -> torch.Tensor:
    """Concatenate the ranks' equally shaped tensors along the first dimension, in rank order."""
    if world_size() == 1:
        return x_BX
    x_BX = x_BX.contiguous()
    out_GX = x_BX.new_empty((world_size() * x_BX.shape[0], *x_BX.shape[1:]))
    # Newer torch renames this collective; older torch has only the first name.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(out_GX, x_BX)
    return out_GX


def reduce_scatter_rows(x_GX: torch.Tensor) -> torch.Tensor:
    """Sum the ranks' [G, ...] tensors and return this rank's [B, ...] rows of the sum."""
    if world_size() == 1:
        return x_GX
    out_BX = x_GX.new_empty((x_GX.shape[0] // world_size(), *x_GX.shape[1:]))
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    reduce_scatter(out_BX, x_GX.contiguous())
    return out_BX


def all_reduce_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum x over the ranks in place; returns x."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def all_reduce_max(x: torch.Tensor) -> torch.Tensor:
    """Elementwise maximum of x over the ranks in place; returns x."""
    if world_size() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def broadcast(x: torch.Tensor, source: int) -> torch.Tensor:
    """Overwrite x with the values of rank source; returns x."""
    if world_size() > 1:
        dist.broadcast(x, src=source)
    return x


def broadcast_from_rank0(x: torch.Tensor) -> torch.Tensor:
    """Overwrite x with rank 0's values; returns x."""
    return broadcast(x, 0)


def barrier() -> None:
    """Wait until every rank has come this far."""
    if world_size() > 1:
        dist.barrier()


def background_group() -> dist.ProcessGroup | None:
    """A group of all ranks on the CPU, for a thread beside the training; collective."""
    return dist.new_group(backend="gloo") if dist.is_initialized() else None


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's (small, picklable) value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def agree(function: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Run function on every rank; if it raises on any, raise the same error on all.

    Without this, a file that only one node cannot read leaves the other ranks waiting in their next
    collective. ValueError and RuntimeError (and OSError, as RuntimeError) are passed on; the first
    failing rank's message is used.
    """
    result: T | None = None
    failure: tuple[type[Exception], str] | None = None
    try:
        result = function()
    except ValueError as error:
        failure = (ValueError, str(error))
    except (RuntimeError, OSError) as error:
        failure = (RuntimeError, str(error))
    failures = [found for found in gather_objects(failure, group) if found is not None]
    if failures:
        kind, message = failures[0]
        raise kind(message)
    return result  # type: ignore[return-value]


def rank0_first(function: Callable[[], T]) -> T:
    """agree(), with rank 0 done before the others begin: it fills a cache that they then read."""
    if world_size() == 1:
        return agree(function)
    result: list[T] = []
    agree(lambda: result.append(function()) if rank() == 0 else None)
    return agree(lambda: result[0] if rank() == 0 else function())


def even_share(num_items: int) -> range:
    """The consecutive items of 0..num_items-1 for this rank; sizes differ by one at most."""
    first = num_items * rank() // world_size()
    return range(first, num_items * (rank() + 1) // world_size())
