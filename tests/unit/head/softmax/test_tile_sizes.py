"""What the kernels that write no logits take of GPUs that are not here: no register is spilt."""

import importlib
import importlib.util

import pytest

from kappaface_dist.head.softmax.tile_sizes import SIZES, SMALL
from tests.machine_code import resources

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
SUMS = {
    **dict.fromkeys(("embedding_ptr", "weight_ptr"), "*bf16"),
    **dict.fromkeys(("inverse_ptr", "part_u_ptr", "part_sum_ptr", "part_nearest_ptr"), "*fp32"),
    **{"column_ptr": "*i32", "number_ptr": "*i64"},
    **dict.fromkeys(("num_images", "num_rows", "rows_of_part", "always"), "i32"),
    **dict.fromkeys(("factor", "shift", "limit"), "fp32"),
}
UPDATE = {
    **dict.fromkeys(("operand_ptr", "embedding_ptr"), "*bf16"),
    **dict.fromkeys(("inverse_ptr", "image_weight_ptr", "scratch_ptr"), "*fp32"),
    **{"target_term_ptr": "*fp32", "target_row_ptr": "*i64"},
    **{"number_ptr": "*i64", "column_ptr": "*i32", "skip_ptr": "*i32"},
    **dict.fromkeys(("num_images", "num_rows", "num_targets", "always"), "i32"),
    **dict.fromkeys(("row_key", "column_key", "first_class"), "i32"),
    **dict.fromkeys(("factor", "shift", "limit", "lr", "momentum", "weight_decay"), "fp32"),
}
# All switches of both kernels.
SWITCHES = ("FILTER", "NEAREST", "SAMPLED", "SKIPPABLE")
# Bytes of shared memory that a block can have, by compute capability: A100, L40, H100, B200.
MOST_SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
# Columns of a multiprocessor's tensor memory: a B200's.
MOST_TENSOR_COLUMNS = 512
# A batch of 1024 images, and as many rows.
EVEN = ("num_images", "num_rows", "rows_of_part")
PLAIN = {"centres": "split", "momentum": "fp32", "size": 512, "on": (), "multiples": EVEN}


def compiled(name, capability, folder, *, centres, momentum, size, on, multiples):
    """`resources` of a kernel as `sum_tiles` or `update_tiles` starts it.

    centres, momentum: their number types; "split": fp32 centres in halves. on: the switches.
    multiples: the whole numbers that are multiples of 16.
    """
    module = importlib.import_module(f"kappaface_dist.head.softmax.tile_{name}")
    kernel = getattr(module, {"sums": "_sum_tiles", "update": "_update_tiles"}[name])
    sizes = SIZES[name].get(capability, SMALL)
    split = centres == "split"
    constants = {**sizes.update_constants(size), **{key: key in on for key in SWITCHES}}
    constants |= {"SPLIT": split, "ROUNDED": not split, "MOMENTUM": momentum is not None}
    constants |= {"STRIDE": 2 * size if split else size, "SEARCH_STEPS": 11}
    types = SUMS
    if name == "update":
        constants["HOIST"] |= not module.CAN_KEEP_IN_LOOP
        own = {"weight_ptr": "*i16" if split else "*bf16", "momentum_ptr": f"*{momentum or 'fp32'}"}
        types = {**UPDATE, **own}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    return resources(kernel, types, constants, capability, folder, sizes.warps, multiples)


@pytest.mark.parametrize(
    ("name", "settings", "capability"),
    [
        # A compilation takes some five seconds.
        pytest.param(
            name, settings, capability, marks=() if once == capability else pytest.mark.long
        )
        for name, settings, once in [
            ("sums", {"on": ("FILTER", "NEAREST", "SAMPLED")}, 90),
            ("sums", {"on": ("NEAREST",), "size": 300, "multiples": ()}, None),
            ("update", {}, 100),
            ("update", {"centres": "bf16", "momentum": None}, 90),
            ("update", {"momentum": "bf16", "on": SWITCHES}, None),
            ("update", {"centres": "bf16", "size": 300, "on": ("FILTER", "SKIPPABLE")}, None),
        ]
        for capability in MOST_SHARED
    ],
)
def test_the_tiles_keep_all_registers(name, settings, capability, tmp_path, monkeypatch):
    """On A100, L40, H100 and B200, with all sums of a tile in registers or in tensor memory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    used = compiled(name, capability, tmp_path, **{**PLAIN, **settings})
    assert used["STACK"] + used["LOCAL"] == 0, f"registers are spilt: {used}"
    assert used["SHARED"] <= MOST_SHARED[capability], used
    assert used["TENSOR"] <= MOST_TENSOR_COLUMNS, used
