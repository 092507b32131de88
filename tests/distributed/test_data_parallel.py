"""Each switch of the data-parallel backbone does what it says, on real processes."""

import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

from kappaface_dist.backbones import build_backbone
from kappaface_dist.backbones.iresnet import Block
from kappaface_dist.backbones.layers import run_block, running_statistics_kept
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.planning.count_collectives import CountCollectives
from kappaface_dist.training.data_parallel import CudaGraphs, DataParallel, wrap_backbone
from tests.processes import run_on_ranks


def small():
    torch.manual_seed(0)
    return build_backbone("tiny_gn", embedding_size=16, image_size=32)


def images():
    generator = torch.Generator().manual_seed(parallel.rank())
    return torch.randn(4, 3, 32, 32, generator=generator)


def gradients(settings, num_steps=1):
    """(gradients by name, collectives) of the last of a few steps behind DDP."""
    network = small()
    backbone = wrap_backbone(network, **settings)
    for _ in range(num_steps):
        network.zero_grad()
        with CountCollectives() as count:
            backbone(images()).square().sum().backward()
        if isinstance(backbone, DataParallel):
            backbone.wait_for_gradients()
    found = {n: p.grad.numpy().copy() for n, p in network.named_parameters() if p.requires_grad}
    return found, [(call.name, call.num_bytes) for call in count.calls]


def mean_gradients():
    """The mean of the ranks' gradients without DDP."""
    network = small()
    network(images()).square().sum().backward()
    found = {n: p.grad for n, p in network.named_parameters() if p.requires_grad}
    return {n: (parallel.all_reduce_sum(g) / 2).numpy().copy() for n, g in found.items()}


def largest_error(found, expected):
    return max(np.abs(found[n] - g).max() / np.abs(g).max() for n, g in expected.items())


def test_gradients_in_bf16_are_the_mean_rounded():
    expected = run_on_ranks(2, mean_gradients)[0]
    full, full_calls = run_on_ranks(2, gradients, {})[0]
    half, half_calls = run_on_ranks(2, gradients, {"gradient_dtype": torch.bfloat16})[0]
    assert largest_error(full, expected) < 1e-5
    # Two numbers and their sum, each rounded to 8 bits: at most 2^-9 + 2^-9 of the largest.
    assert 1e-5 < largest_error(half, expected) < 2**-7
    (full_bytes,), (half_bytes,) = ([b for _, b in calls] for calls in (full_calls, half_calls))
    assert half_bytes * 2 == full_bytes == 4 * sum(g.size for g in full.values())


def test_gradients_are_those_of_torch_s_own_ddp():
    def plain():
        network = small()
        backbone = nn.parallel.DistributedDataParallel(network)
        backbone(images()).square().sum().backward()
        return {n: p.grad.numpy() for n, p in network.named_parameters() if p.requires_grad}

    expected = run_on_ranks(2, plain)[0]
    found, _ = run_on_ranks(2, gradients, {})[0]
    for name, gradient in expected.items():
        np.testing.assert_array_equal(found[name], gradient, err_msg=name)


def test_the_backward_pass_does_not_wait_for_the_other_ranks(tmp_path):
    """What waits is wait_for_gradients, so the head's second pass can go between them."""
    done = tmp_path / "done"

    def wait_until_done():
        deadline = time.monotonic() + 30
        while not done.exists():
            assert time.monotonic() < deadline, "rank 0 waits for rank 1 in its backward pass"
            time.sleep(0.01)

    def backward():
        backbone = wrap_backbone(small())
        for step in range(2):  # DDP's first step does more
            loss = backbone(images()).square().sum()
            parallel.barrier()
            if step == 1 and parallel.rank() == 1:
                wait_until_done()
            loss.backward()
            if step == 1 and parallel.rank() == 0:
                complete = [work.is_completed() for work, *_ in backbone._exchange.running]
                done.touch()
            backbone.wait_for_gradients()
        return complete if parallel.rank() == 0 else None

    complete, _ = run_on_ranks(2, backward)
    assert complete
    assert not any(complete)


def test_buckets_are_as_large_as_asked():
    one, one_calls = run_on_ranks(2, gradients, {}, 3)[0]
    many, many_calls = run_on_ranks(2, gradients, {"bucket_megabytes": 0.2}, 3)[0]
    assert len(one_calls) < len(many_calls)
    assert sum(b for _, b in one_calls) == sum(b for _, b in many_calls)
    for name, gradient in one.items():
        np.testing.assert_array_equal(many[name], gradient, err_msg=name)


def test_a_static_graph_gives_the_same():
    def is_static():
        return wrap_backbone(small(), static_graph=True).static_graph

    assert run_on_ranks(2, is_static) == [True, True]
    expected, _ = run_on_ranks(2, gradients, {}, 3)[0]
    found, _ = run_on_ranks(2, gradients, {"static_graph": True}, 3)[0]
    for name, gradient in expected.items():
        np.testing.assert_array_equal(found[name], gradient, err_msg=name)


class Part(nn.Module):
    """A block of a network, where compiling a whole one takes a minute."""

    def __init__(self, checkpointing):
        super().__init__()
        # With fewer than 8 channels torch 2.13's own backward pass of a strided 1x1 convolution
        # writes beyond its memory on processors without AVX-512.
        self.block = Block(8, 8, 2, nn.BatchNorm2d, drop_path_rate=0.0)
        self.checkpointing = checkpointing

    def forward(self, image_B3HW):
        return run_block(self.block, image_B3HW, checkpointing=self.checkpointing)


def block_steps(compiled, checkpointing=False):
    """(output, gradients, buffers) of two steps, how many graphs were compiled, what is called."""
    torch.manual_seed(0)
    network = Part(checkpointing)
    image_B8HW = torch.randn(4, 8, 32, 32, generator=torch.Generator().manual_seed(2))
    backbone = wrap_backbone(network, compiled=compiled)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        with torch.no_grad(), running_statistics_kept(network):
            backbone(image_B8HW)  # as where embeddings are cached
        output = backbone(image_B8HW)
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        (output * weight).sum().backward()
    gradients = {n: p.grad for n, p in network.named_parameters()}
    num_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return (output.detach(), gradients, dict(network.named_buffers())), num_graphs, backbone


@pytest.mark.parametrize(
    ("compiled", "checkpointing"),
    [
        (True, False),
        pytest.param(
            True,
            True,
            marks=pytest.mark.skipif(
                TorchVersion(torch.__version__) < (2, 9), reason="refused before torch 2.9"
            ),
        ),
        # On a CPU they compile as True does; a GPU's graphs are gpu_check's.
        pytest.param("reduce-overhead", False, marks=pytest.mark.long),
        pytest.param("max-autotune", False, marks=pytest.mark.long),
    ],
)
def test_compiled_is_the_same_network(compiled, checkpointing):
    expected, no_graphs, _ = block_steps(False)
    found, num_graphs, backbone = block_steps(compiled, checkpointing)
    # With and without gradients.
    assert (no_graphs, num_graphs) == (0, 2)
    assert isinstance(backbone, CudaGraphs) == (compiled is not True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found[2]["block.bn1.num_batches_tracked"] == 2


def test_results_of_cuda_graphs_outlive_the_next_call():
    class Replay(nn.Module):
        """Writes into the same memory every time, as a CUDA graph does."""

        memory = torch.zeros(2)

        def forward(self, x):
            return self.memory.copy_(x)

    backbone = CudaGraphs(Replay())
    first, second = backbone(torch.ones(2)), backbone(torch.zeros(2))
    assert (first.tolist(), second.tolist()) == ([1.0, 1.0], [0.0, 0.0])


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler \(g\+\+\)"):
        wrap_backbone(small(), compiled=True)
