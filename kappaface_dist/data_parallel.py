"""The backbone as it is called in training: compiled where asked for, and behind DDP."""

import inspect
import shutil

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kappaface_dist import parallel


def with_sync_batchnorm(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with statistics of the batch of all ranks; names and weights stay the same.

    Raises:
        ValueError: the device is no GPU: torch has it there only.
    """
    if device.type != "cuda":
        raise ValueError(
            f"backbone.sync_batchnorm is true, but the device is {device.type} and torch has it on"
            " GPUs only: set it to false, or use tiny_gn, which needs no statistics"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def wrap_backbone(
    network: nn.Module,
    *,
    compiled: bool = False,
    gradient_dtype: torch.dtype = torch.float32,
    static_graph: bool = False,
    bucket_megabytes: float = 25.0,
) -> nn.Module:
    """What training calls instead of the network, on the same parameters.

    Running statistics are not exchanged in training: evaluation and checkpoints take rank 0's.

    Args:
        compiled: by torch.compile.
        gradient_dtype: of the gradients that the ranks exchange: float32, or bfloat16 for half the
            bytes; each rank's share is rounded to 8 bits, the sum over ranks too.
        static_graph: tell DDP that every step uses the same parameters in the same order.
        bucket_megabytes: gradients exchanged in one all-reduce, while the backward pass goes on.

    Raises:
        RuntimeError: compiled on a machine without a C++ compiler, where the CPU needs one.
    """
    backbone = network
    if compiled:
        on_cpu = next(network.parameters()).device.type == "cpu"
        if on_cpu and shutil.which("g++") is None and shutil.which("clang++") is None:
            raise RuntimeError(
                "backbone.compile is true, but there is no C++ compiler (g++) for it: install one,"
                " or set it to false"
            )
        backbone = torch.compile(backbone, dynamic=False)  # type: ignore[assignment]
    if parallel.world_size() == 1:
        return backbone
    # torch 2.13 renames this option; older versions know the old name only.
    options = inspect.signature(DistributedDataParallel.__init__).parameters
    per_step = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    wrapped = DistributedDataParallel(
        backbone,
        gradient_as_bucket_view=True,
        static_graph=static_graph,
        bucket_cap_mb=bucket_megabytes,
        **{per_step: False},  # type: ignore[arg-type]
    )
    if gradient_dtype == torch.bfloat16:
        wrapped.register_comm_hook(None, mean_in_bf16)
    return wrapped


def mean_in_bf16(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP hook: the mean over the ranks, exchanged in bf16.

    torch's own hook of this kind refuses to run without NCCL.
    """
    gradient = bucket.buffer()
    compressed = gradient.to(torch.bfloat16).div_(parallel.world_size())
    future = dist.all_reduce(compressed, async_op=True).get_future()

    def decompress(done: torch.futures.Future) -> torch.Tensor:
        done.wait()
        return gradient.copy_(compressed)

    return future.then(decompress)
