"""How many kernels a GPU is given for each chunk: where chunks are small, it waits for these."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kappaface_dist.head import ArcFace, PartialFC
from kappaface_dist.planning.pretend_gpu import DEVICE, pretend_gpu
from kappaface_dist.planning.pretend_group import pretend_ranks

ROWS = 1024
# Triton's kernels, which `pretend_gpu` puts a copy in place of: Q in each pass, and the update.
TRITON = "aten.copy_.default"
# The products of the first pass (logits, U) and of the second (logits, h), and the sum of Z.
NO_CACHE = {"aten.mm.dtype_out": 3, "aten.addmm.dtype_out": 1, TRITON: 3}
CACHED = {"aten.mm.dtype_out": 2, "aten.addmm.dtype_out": 1, TRITON: 2}
SUM = {"aten.sum.dim_IntList": 1, "aten.add_.Tensor": 1}
NO_LAUNCH = ("empty", ".slice", ".t.", "permute", "view", "detach", "prim.", "select.int")


class CountLaunches(TorchDispatchMode):
    """Counts what runs on the device by name; views and new memory run nowhere."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not any(part in str(func) for part in NO_LAUNCH):
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def launches_of_a_step(num_chunks, cache_bytes):
    with pretend_ranks(1), pretend_gpu():
        head = PartialFC(
            num_chunks * ROWS,
            64,
            ArcFace(),
            dtype=torch.bfloat16,
            centre_dtype=torch.bfloat16,
            fused="chunks",
            logit_cache_bytes=cache_bytes,
            device=DEVICE,
        )
        head.take_chunks_of(ROWS)
        embedding_BD = torch.randn(32, 64, device=DEVICE).requires_grad_()
        label_B = torch.arange(32, device=DEVICE)
        with CountLaunches() as launches:
            head(embedding_BD, label_B).backward()
            head.step(0.1)
    return launches.counts


@pytest.mark.parametrize(("cache_bytes", "expected"), [(0, NO_CACHE), (1 << 30, CACHED)])
def test_a_chunk_is_given_to_a_gpu_in_few_kernels(cache_bytes, expected):
    few, many = launches_of_a_step(2, cache_bytes), launches_of_a_step(7, cache_bytes)
    each = {name: (many[name] - few[name]) / 5 for name in many if many[name] != few[name]}
    assert each == {**expected, **SUM}
