"""The backbone as it is called in training: compiled where asked for, and behind DDP."""

import inspect
import shutil
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kappaface_dist.backbones import timm_networks
from kappaface_dist.parallel import ranks as parallel


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
    if isinstance(network, timm_networks.TimmNetwork):
        return timm_networks.with_sync_batchnorm(network)
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


class DataParallel(DistributedDataParallel):
    """DDP whose exchange of gradients outlasts the backward pass, until it is waited for.

    The head's second pass, which needs no gradient of the backbone, fits in between.

    Args:
        gradient_dtype: see wrap_backbone.
        options: of DistributedDataParallel.
    """

    def __init__(self, backbone: nn.Module, gradient_dtype: torch.dtype, **options: Any):
        super().__init__(backbone, **options)
        self._exchange = Exchange(gradient_dtype)
        self.register_comm_hook(self._exchange, start_exchange)
        self._deal_buckets()

    def _deal_buckets(self) -> None:
        """Let two backward passes of zeros come before the first step.

        At its second pass DDP deals the gradients out to other buckets, by the order in which they
        came in the first. From three ranks on a sum's rounding depends on its place in the bucket:
        a run that goes on would differ in its first step from one that was never stopped.
        """
        network, self.module = self.module, _Zero(self.module)
        for _ in range(2):
            self().backward()
            self.wait_for_gradients()
        self.module = network
        for parameter in network.parameters():
            parameter.grad = None

    def wait_for_gradients(self) -> None:
        """Afterwards the gradients of the last backward pass are the means over the ranks."""
        for work, sent, gradient in self._exchange.running:
            work.wait()
            if sent is not gradient:
                gradient.copy_(sent)
        self._exchange.running.clear()


class _Zero(nn.Module):
    """0, of which every parameter has a gradient; the last of them first, as a network's come."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.parameter_list = [p for p in network.parameters() if p.requires_grad]

    def forward(self) -> torch.Tensor:
        total = self.parameter_list[0].new_zeros(())
        for parameter in self.parameter_list:
            total = total + 0.0 * parameter.reshape(-1)[0]
        return total


class Exchange:
    """All-reduces on their way: what to wait for, what is sent, and whose place it takes."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.running: list[tuple[dist.Work, torch.Tensor, torch.Tensor]] = []


def start_exchange(
    exchange: Exchange, bucket: dist.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """DDP hook: start the mean over the ranks of a bucket, and let the backward pass end."""
    gradient = bucket.buffer()
    sent = gradient.to(exchange.dtype).div_(parallel.world_size())
    exchange.running.append((dist.all_reduce(sent, async_op=True), sent, gradient))
    devices: list[int | str | torch.device] = [gradient.device] if gradient.is_cuda else []
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future(devices=devices)
    # DDP takes the bucket for done, and hands out its views as the gradients.
    future.set_result(gradient)
    return future


class CudaGraphs(nn.Module):
    """A network that was compiled into CUDA graphs; what it returns outlives the next call.

    A replay writes its results where the one before it did: the micro-batches' embeddings, which
    wait for each other where they are cached, would all become the last one.
    """

    def __init__(self, compiled: nn.Module):
        super().__init__()
        self.compiled = compiled

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        # A step that ended before its backward pass (a loss that is not finite) must not count on.
        torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(image_B3HW).clone()


def has_cuda_graphs(compiled: bool | str) -> bool:
    """Whether the compiled backbone's memory, its gradients too, is that of CUDA graphs."""
    return isinstance(compiled, str)


def wrap_backbone(
    network: nn.Module,
    *,
    compiled: bool | str = False,
    gradient_dtype: torch.dtype = torch.float32,
    static_graph: bool = False,
    bucket_megabytes: float = 25.0,
) -> nn.Module:
    """What training calls instead of the network, on the same parameters.

    Running statistics are not exchanged in training: evaluation and checkpoints take rank 0's.

    Args:
        compiled: by torch.compile; a string is its mode, one of those that use CUDA graphs.
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
                f"backbone.compile is {str(compiled).lower()}, but there is no C++ compiler (g++)"
                " for it: install one, or set it to false"
            )
        mode = compiled if isinstance(compiled, str) else None
        backbone = torch.compile(backbone, dynamic=False, mode=mode)  # type: ignore[assignment]
        if has_cuda_graphs(compiled):
            backbone = CudaGraphs(backbone)
    if parallel.world_size() == 1:
        return backbone
    # torch 2.13 renames this option; older versions know the old name only.
    options = inspect.signature(DistributedDataParallel.__init__).parameters
    per_step = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    return DataParallel(
        backbone,
        gradient_dtype,
        gradient_as_bucket_view=True,
        static_graph=static_graph,
        bucket_cap_mb=bucket_megabytes,
        **{per_step: False},
    )
