"""Matrix products with operands in one number type and sums in another; where Triton is at hand.

Shapes: the letters M, N, X are the product's own.
"""

import functools
import importlib.util
import logging
import os
from types import ModuleType

import torch

logger = logging.getLogger(__name__)
# Newer torch hands out cuBLAS's products of bf16 operands with their fp32 sums.
HAS_FP32_SUMS = "dtype_out" in torch.ops.aten.addmm.overloads()


def multiply(
    a_MX: torch.Tensor,
    b_XN: torch.Tensor,
    dtype: torch.dtype,
    *,
    out: torch.Tensor,
    add: bool = False,
) -> None:
    """out = a @ b, or out += a @ b: operands rounded to dtype, products summed in out's type."""
    if dtype != out.dtype and out.is_cuda and HAS_FP32_SUMS:
        a_MX, b_XN = a_MX.to(dtype), b_XN.to(dtype)
        if add:
            torch.addmm(out, a_MX, b_XN, out_dtype=out.dtype, out=out)
        else:
            torch.mm(a_MX, b_XN, out_dtype=out.dtype, out=out)
        return
    # The CPU has no such product: round the operands as the GPU would, and multiply in out's type.
    a_MX, b_XN = a_MX.to(dtype).to(out.dtype), b_XN.to(dtype).to(out.dtype)
    if add:
        out.addmm_(a_MX, b_XN)
    else:
        torch.mm(a_MX, b_XN, out=out)


def slow_products(dtype: torch.dtype, device_type: str) -> str | None:
    """Why products of such operands take longer than was asked for; None where they do not."""
    if dtype != torch.bfloat16 or device_type != "cuda" or HAS_FP32_SUMS:
        return None
    return (
        f"head.dtype is bf16, but torch {torch.__version__} has no product of bf16 operands with"
        " fp32 sums: they are rounded to bf16 and multiplied in fp32, at fp32's speed and with two"
        " more copies of each chunk; use torch 2.8 or newer, or set head.dtype to fp32"
    )


def warn_of_slow_products(dtype: torch.dtype, device_type: str) -> None:
    """Log `slow_products`, if there is anything to say."""
    sentence = slow_products(dtype, device_type)
    if sentence is not None:
        logger.warning(sentence)


@functools.cache
def triton_kernels(device_type: str) -> ModuleType | None:
    """`kernels.py`, where its kernels can run: on a GPU with Triton, or under its interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if (device_type != "cuda" and not interpreted) or importlib.util.find_spec("triton") is None:
        return None
    from kappaface_dist.head.softmax import kernels

    return kernels
