"""Products of bf16 operands where torch has none with fp32 sums."""

import pytest
import torch

from kappaface_dist.head.softmax import products


@pytest.mark.parametrize(
    ("has_fp32_sums", "dtype", "device_type", "slow"),
    [
        (False, torch.bfloat16, "cuda", True),
        (True, torch.bfloat16, "cuda", False),
        (False, torch.float32, "cuda", False),
        (False, torch.bfloat16, "cpu", False),  # rounded as a GPU would, which is what is wanted
    ],
)
def test_says_that_bf16_is_no_faster(monkeypatch, caplog, has_fp32_sums, dtype, device_type, slow):
    monkeypatch.setattr(products, "HAS_FP32_SUMS", has_fp32_sums)
    products.warn_of_slow_products(dtype, device_type)
    assert len(caplog.records) == slow
    if slow:
        assert "use torch 2.8 or newer, or set head.dtype to fp32" in caplog.text
