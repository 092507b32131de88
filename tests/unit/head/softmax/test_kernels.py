"""The Triton kernels under Triton's interpreter, against the plain versions.

The interpreter is chosen when Triton is imported, so the comparison runs in a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kappaface_dist.head import ArcFace, PartialFC, SGDRows
from kappaface_dist.head.rounding import Rounding
from kappaface_dist.head.softmax.products import triton_kernels

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
# Both round Q (and the momentum) to bf16, but the interpreter cuts off where a GPU rounds: 2^-7 at
# most for one number.
CLOSE = 8e-3
LR = 0.001
# Neither a multiple of the tiles: D = 48 is padded to 64, 333 rows to 3 tiles of 128.
C, G, D = 333, 40, 48


def run_head(fused, device, *, steps=2, skip_step=None, **settings):
    settings = {"split_centres": False, "dtype": torch.bfloat16, **settings}
    head = PartialFC(C, D, ArcFace(), fused="chunks" if fused else "off", device=device, **settings)
    assert (head.softmax.kernels(torch.device(device)) is not None) == fused
    losses, gradients = [], []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        embedding_GD = torch.randn(G, D, generator=generator).to(device).requires_grad_()
        label_G = torch.randint(C, (G,), generator=generator).to(device)
        label_G[1] = label_G[0]
        loss = head(embedding_GD, label_G)
        loss.backward()
        skip = None if skip_step is None else torch.tensor(step == skip_step, device=device)
        head.step(LR, skip=skip)
        losses.append(loss.detach())
        gradients.append(embedding_GD.grad)
    return torch.stack(losses), torch.stack(gradients), head.sharded_state()


def compare_all(device):
    for name, settings in {
        "plain": {},
        "split": {"split_centres": True},
        "cache": {"split_centres": True, "logit_cache_bytes": 1 << 20},
        "half cached": {"logit_cache_bytes": G * 128 * 2, "chunk_bytes": G * 128 * 4},
        "sampled": {"sample_rate": 0.3, "split_centres": True},
        # One step: in a second, centres apart by a rounding put other negatives at the threshold.
        "filter": {"filter_threshold": 0.2, "steps": 1},
        "bf16 momentum": {"optimizer": SGDRows(momentum_dtype=torch.bfloat16)},
        "bf16 centres": {"centre_dtype": torch.bfloat16, "split_centres": None, "steps": 1},
        "bf16 centres, sampled": {
            "centre_dtype": torch.bfloat16,
            "split_centres": None,
            "sample_rate": 0.3,
            "optimizer": SGDRows(momentum=0.0, lr_factor=10.0),
        },
        "skip": {"skip_step": 1},
        "sub-centres": {"sub_centres": 2, "split_centres": True, "sample_rate": 0.3},
        "negligible": {"skip_mass": 0.2, "chunk_bytes": 1, "logit_cache_bytes": G * 128 * 2},
    }.items():
        plain, fused = (run_head(fused, device, **settings) for fused in (False, True))
        torch.testing.assert_close(fused[0], plain[0], rtol=2e-4, atol=0, msg=f"loss, {name}")
        assert (fused[1] - plain[1]).norm() < CLOSE * plain[1].norm(), f"embeddings, {name}"
        each = settings.get("sub_centres", 1)
        first = PartialFC(C, D, ArcFace(), device=device, sub_centres=each)
        start = first.sharded_state()["weight"]
        moved = (plain[2]["weight"] - start).norm()
        assert moved > 0
        apart = (fused[2]["weight"] - plain[2]["weight"]).norm()
        # Where updates are apart by a share x of a step of bf16, x of them round apart by a step.
        close = 2 * CLOSE if settings.get("centre_dtype") else CLOSE
        assert apart < close * moved, f"centres, {name}"
        assert fused[2].keys() == plain[2].keys()
        if "optimizer.momentum" in fused[2]:
            momentum, expected = (side[2]["optimizer.momentum"].float() for side in (fused, plain))
            assert (momentum - expected).norm() < CLOSE * expected.norm(), f"momentum, {name}"
        print("same:", name)


class OtherSGD:
    """SGDRows' formula by another type, for the kernel alone."""

    init_state = SGDRows().init_state
    fused_numbers = SGDRows().fused_numbers

    def update(self, *_):
        raise AssertionError("the plain update, though the optimizer offers a fused one")


class DoubledSGD(SGDRows):
    """A formula that the kernel does not have."""

    def update(self, weight_RD, gradient_RD, state, lr):
        super().update(weight_RD, gradient_RD, state, 2.0 * lr)

    def fused_numbers(self):
        return None


def compare_optimizers(device):
    weights = {
        optimizer: run_head(True, device, optimizer=optimizer(), steps=1)[2]["weight"]
        for optimizer in (SGDRows, OtherSGD, DoubledSGD)
    }
    assert torch.equal(weights[OtherSGD], weights[SGDRows])
    start = PartialFC(C, D, ArcFace(), device=device).weight_KD
    moved, doubled = (weights[optimizer] - start for optimizer in (SGDRows, DoubledSGD))
    assert (doubled - 2.0 * moved).norm() < CLOSE * doubled.norm()
    print("same: an optimizer's own word for its formula")


def compare_rounding(device):
    """Bit for bit, from the same fp32 update: the same random numbers, and nothing that is lost."""
    kernels = triton_kernels(device)
    generator = torch.Generator().manual_seed(0)
    rounding = Rounding.of_step(5, 7, 1000)
    no_target = torch.tensor([10**6], device=device), torch.zeros(1, 33, device=device)
    for index_S in (None, torch.arange(0, 200, 3)):
        row_R = torch.arange(10, 60) if index_S is None else index_S[10:60]
        start_RD = torch.randn(50, 33, generator=generator).bfloat16()
        h_RD = 0.01 * torch.randn(50, 33, generator=generator)
        start_RD[3, 5], start_RD[4, 6], start_RD[7] = torch.nan, torch.inf, 1.0
        h_RD[7] = 0.0
        weight_RD = start_RD.float()
        radial_R = (weight_RD * h_RD).sum(dim=1) / weight_RD.square().sum(dim=1)
        weight_RD -= 0.1 * (h_RD - weight_RD * radial_R[:, None])
        expected_RD = torch.empty_like(start_RD)
        rounding.round(weight_RD, row_R, expected_RD)
        chunk_RD = start_RD.to(device)
        kernels.update_rows(
            chunk_RD,
            h_RD.to(device),
            None,
            *no_target,
            10,
            split=False,
            lr=0.1,
            momentum=0.0,
            weight_decay=0.0,
            skip=None,
            index_S=None if index_S is None else index_S.to(device),
            **vars(rounding),
        )
        chunk_RD = chunk_RD.cpu()
        # The sums over a row may differ in their last bits, and with them one rounding of 65536.
        apart = chunk_RD.view(torch.int16) != expected_RD.view(torch.int16)
        apart &= ~(chunk_RD.isnan() & expected_RD.isnan())
        assert apart.sum() <= 2
        assert chunk_RD[[3, 4]].isnan().all(dim=1).tolist() == [True, True]
        assert torch.equal(chunk_RD[7], start_RD[7])
    print("same: rounding")


def test_the_kernels_compute_what_the_plain_versions_do():
    root = Path(__file__).resolve().parents[4]
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.head.softmax.test_kernels"],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same:") == 14


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernels_on_a_gpu():
    compare_all("cuda")
    compare_optimizers("cuda")
    compare_rounding("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_two_runs_on_a_gpu_are_bitwise_equal_where_the_flag_asks_for_it(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run_head(True, "cuda", steps=4, split_centres=True) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_agrees_with_the_cpu_in_fp32():
    settings = {"dtype": torch.float32, "steps": 1}
    cpu, gpu = (run_head(False, device, **settings) for device in ("cpu", "cuda"))
    for ours, expected in zip(gpu[:2], cpu[:2], strict=True):
        assert (ours.cpu() - expected).norm() < 1e-4 * expected.norm()


def test_without_a_gpu_the_plain_versions_run():
    if os.environ.get("TRITON_INTERPRET") != "1":
        assert triton_kernels("cpu") is None


if __name__ == "__main__":
    torch.set_num_threads(1)
    compare_all("cpu")
    compare_optimizers("cpu")
    compare_rounding("cpu")
