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
from tests.machine_code import resources

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


EXPONENTIATE = {
    **dict.fromkeys(("product_ptr", "inverse_ptr", "part_ptr"), "*fp32"),
    "column_ptr": "*i64",
    "share_ptr": "*bf16",
    **dict.fromkeys(("first", "num_images", "num_rows"), "i32"),
    **dict.fromkeys(("factor", "shift", "limit"), "fp32"),
}
UPDATE = {
    "weight_ptr": "*i16",
    **dict.fromkeys(("h_ptr", "momentum_ptr", "target_term_ptr"), "*fp32"),
    "target_row_ptr": "*i64",
    "skip_ptr": "*i32",
    **dict.fromkeys(("first", "num_targets", "num_rows"), "i32"),
    **dict.fromkeys(("row_key", "column_key", "first_class"), "i32"),
    **dict.fromkeys(("lr", "momentum", "weight_decay"), "fp32"),
    "number_ptr": "*i64",
}
HALF = {"weight_ptr": "*bf16", "momentum_ptr": "*bf16"}


# Of 65536 registers a multiprocessor has: two blocks of 128 threads of the first, whose tile of
# logits lies in them, four of the second; of 100 KiB of shared memory, more.
MOST_REGISTERS = {"_exponentiate": 255, "_update_rows": 128}
MOST_SHARED_BYTES = 25 * 1024
# Bytes a thread keeps in memory: Triton 3.9 lets one address of sampled rows go there for sm_90.
MOST_SPILT = {"_exponentiate": 0, "_update_rows": 8}


@pytest.mark.parametrize("capability", [80, 89, 90, 100])
@pytest.mark.parametrize(
    ("kernel", "types", "settings"),
    [
        ("_exponentiate", EXPONENTIATE, {"FILTER": True}),
        ("_exponentiate", EXPONENTIATE, {"FILTER": False}),
        ("_update_rows", UPDATE, {"SPLIT": True, "SKIPPABLE": True}),
        ("_update_rows", {**UPDATE, "weight_ptr": "*fp32"}, {}),
        ("_update_rows", {**UPDATE, **HALF}, {"ROUNDED": True, "SAMPLED": True}),
        ("_update_rows", {**UPDATE, **HALF}, {"ROUNDED": True, "MOMENTUM": False}),
    ],
)
def test_the_kernels_compile_for_gpus_that_are_not_here(
    kernel, types, settings, capability, tmp_path, monkeypatch
):
    """To machine code for A100, L40, H100 and B200, at D = 512 and G = 1024: no register spilt, and
    room for several blocks of 4 warps on a multiprocessor.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = importlib.import_module("kappaface_dist.head.softmax.kernels")
    sizes = {"BLOCK_G": kernels.BLOCK_G, "BLOCK_R": kernels.BLOCK_R}
    if kernel == "_update_rows":
        kernels = importlib.import_module("kappaface_dist.head.softmax.update_kernel")
        flags = ("SPLIT", "SKIPPABLE", "ROUNDED", "SAMPLED")
        sizes = {**dict.fromkeys(flags, False), "MOMENTUM": True}
        sizes |= {"SEARCH_STEPS": 11, "SIZE": 512, "BLOCK_D": 512}
        sizes["BLOCK_R"] = kernels.UPDATE_TILE // 512
    constants = {**sizes, **settings}
    counts = resources(getattr(kernels, kernel), types, constants, capability, tmp_path)
    spilt = counts["STACK"] + counts["LOCAL"]
    assert spilt <= MOST_SPILT[kernel], f"registers are spilt: {counts}"
    assert counts["REG"] <= MOST_REGISTERS[kernel], counts
    assert counts["SHARED"] <= MOST_SHARED_BYTES, counts


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
