"""What the Triton kernels take of GPUs that are not here."""

import importlib.util

import pytest

from tests.machine_code import resources

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


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
    from kappaface_dist.head.softmax import kernels, update_kernel

    module = kernels
    sizes = {"BLOCK_G": kernels.BLOCK_G, "BLOCK_R": kernels.BLOCK_R}
    if kernel == "_update_rows":
        module = update_kernel
        flags = ("SPLIT", "SKIPPABLE", "ROUNDED", "SAMPLED")
        sizes = {**dict.fromkeys(flags, False), "MOMENTUM": True}
        sizes |= {"SEARCH_STEPS": 11, "SIZE": 512, "BLOCK_D": 512}
        sizes["BLOCK_R"] = module.UPDATE_TILE // 512
    constants = {**sizes, **settings}
    counts = resources(getattr(module, kernel), types, constants, capability, tmp_path)
    spilt = counts["STACK"] + counts["LOCAL"]
    assert spilt <= MOST_SPILT[kernel], f"registers are spilt: {counts}"
    assert counts["REG"] <= MOST_REGISTERS[kernel], counts
    assert counts["SHARED"] <= MOST_SHARED_BYTES, counts
