"""A GPU that is not here: torch's fake tensors, which have a device and a shape and no numbers.

Inside `pretend_gpu` the code runs on "cuda" tensors as it is: what lies on the wrong device, what
no operator takes, what the host would have to know is found; nothing is computed. What lets the
host wait for the device is noted, and answered. Triton's kernels are stood in for by their shapes.
Needs a torch that was built for CUDA; no driver.
Shapes: G images on all ranks, R rows of one chunk, X blocks.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from kappaface_dist.head.softmax import settings
from kappaface_dist.planning.device_watch import DeviceWatch
from kappaface_dist.planning.pretend_backward import backward_passes
from kappaface_dist.planning.pretend_ddp import PretendDataParallel
from kappaface_dist.training import data_parallel

DEVICE = torch.device("cuda", 0)
# Of the kernels that write no logits, on an H100 or H200: a program on each multiprocessor.
NUM_TILES, TILE_IMAGES = 132, 64


class FakeKernels:
    """`head/softmax/kernels.py` by what its functions take and return."""

    @staticmethod
    def exponentiate(
        product_GR: torch.Tensor,
        inverse_R: torch.Tensor,
        column_G: torch.Tensor,
        first: int,
        *,
        out: torch.Tensor,
        **_: Any,
    ) -> torch.Tensor:
        out.copy_(product_GR)
        return product_GR.new_empty(-(-product_GR.shape[1] // 128), len(product_GR))

    @staticmethod
    def update_rows(chunk_RD: torch.Tensor, h_RD: torch.Tensor, *_: Any, **__: Any) -> None:
        chunk_RD.copy_(h_RD)

    @staticmethod
    def fastest(*_: Any) -> str:
        return "chunks"  # where nothing was measured

    @staticmethod
    def sum_tiles(
        embedding_GD: torch.Tensor, *_: torch.Tensor | None, find_nearest: bool, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        num_images, size = embedding_GD.shape
        sum_G = embedding_GD.new_empty(num_images, dtype=torch.float32)
        tile_XD = sum_G.new_empty(NUM_TILES, TILE_IMAGES, size)  # that programs write
        sum_GD = sum_G.new_empty(num_images, size).add_(tile_XD.sum())
        return sum_G, sum_GD, sum_G.clone() if find_nearest else None

    @staticmethod
    def update_tiles(weight_KD: torch.Tensor, *_: Any, **__: Any) -> None:
        size = weight_KD.shape[1]
        tile_XD = weight_KD.new_empty(NUM_TILES, TILE_IMAGES, size, dtype=torch.float32)
        weight_KD.add_(tile_XD.sum())


def apply_to_module(module: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """Module._apply, which swaps fake parameters in place and fails where one is referred to."""
    for child in module.children():
        apply_to_module(child, fn)
    for key, parameter in list(module.named_parameters(recurse=False)):
        with torch.no_grad():
            setattr(module, key, nn.Parameter(fn(parameter), parameter.requires_grad))
    for key, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, key, fn(buffer))
    return module


@contextmanager
def pretend_gpu(*, kernels: bool = True) -> Iterator[DeviceWatch]:
    """Inside, tensors on DEVICE can be made and used, and nothing is computed.

    Args:
        kernels: as if Triton were there.

    Raises:
        RuntimeError: this torch was not built for CUDA.
    """
    if not torch.backends.cuda.is_built():
        raise RuntimeError(
            f"torch {torch.__version__} was built without CUDA, and its fake tensors cannot lie on"
            " a GPU: install a build for CUDA (no GPU is needed)"
        )
    from torch.distributed._tools import fake_collectives  # noqa: F401 - registers them

    seen = DeviceWatch()
    generator = torch.Generator

    def fake_kernels(device_type: str) -> Any:
        return FakeKernels if kernels and device_type == "cuda" else None

    with ExitStack() as stack:
        enter = stack.enter_context
        enter(backward_passes())
        enter(mock.patch.object(settings, "triton_kernels", fake_kernels))
        enter(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
        enter(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
        enter(mock.patch("torch.cuda.synchronize", side_effect=seen.synchronize))
        enter(mock.patch.object(nn.Module, "_apply", apply_to_module))
        enter(mock.patch.object(data_parallel, "DataParallel", PretendDataParallel))
        enter(mock.patch("torch.Generator", side_effect=lambda *_: generator()))
        enter(mock.patch.object(FakeTensor, "tolist", lambda tensor: seen.to_list(tensor)))
        enter(
            mock.patch.object(
                FakeTensor, "numpy", lambda tensor: seen.to_numpy(tensor), create=True
            )
        )
        enter(FakeTensorMode(allow_non_fake_inputs=True))
        enter(seen)
        yield seen
