"""Runs a test function in several real processes joined by gloo."""

import os
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
import torch.multiprocessing as mp


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run_rank(rank, num_ranks, port, function, args, results):
    # One thread a rank, as torchrun does; forked children must not inherit a thread pool's state.
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        dist.init_process_group(
            "gloo", rank=rank, world_size=num_ranks, timeout=timedelta(seconds=60)
        )
        value = function(*args)
        dist.barrier()
        results.put((rank, value, None))
    except BaseException:  # noqa: BLE001 - handed to the parent process, which fails the test
        results.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run_on_ranks(num_ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """function(*args) in num_ranks forked processes; the ranks' return values, in rank order.

    Values come back through pickle: return numpy arrays or plain Python, not tensors.
    num_ranks 0 means: here, with no process group at all.
    """
    if num_ranks == 0:
        return [function(*args)]
    context = mp.get_context("fork")
    results = context.SimpleQueue()
    port = free_port()
    processes = [
        context.Process(target=_run_rank, args=(rank, num_ranks, port, function, args, results))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    values: list[Any] = [None] * num_ranks
    failures = []
    for _ in processes:
        rank, value, failure = results.get()
        values[rank] = value
        if failure:
            failures.append(f"rank {rank}:\n{failure}")
            break
    for process in processes:
        process.join(timeout=1 if failures else 60)
        if process.is_alive():
            process.kill()
    if failures:
        raise AssertionError("\n".join(failures))
    return values
