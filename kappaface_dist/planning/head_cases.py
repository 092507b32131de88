"""The sizes and settings of the head that benchmark_head.py --all goes through."""

from typing import Any

LARGE = {"classes": 1_250_000, "batch": 1024, "dtype": "bf16"}
SHARE = {**LARGE, "classes": 12_500_000, "repeats": 3}
CACHED = {**LARGE, "logit_cache_bytes": 2 * 1_250_000 * 1024}
HALVES = {"centre_dtype": "bf16", "momentum_dtype": "bf16"}
TILES = {"fused": "tiles", "dense": False}
MB = 1 << 20
# What each case of --all differs in from the command line's defaults.
CASES: dict[str, dict[str, Any]] = {
    "cache, dense bf16": CACHED,
    "no cache, dense fp32": {**LARGE, "dense_dtype": "fp32"},
    "sample rate 0.1": {**LARGE, "sample_rate": 0.1, "dense": False},
    "plain PyTorch": {**CACHED, "fused": "off", "dense": False},
    "no cache": {**LARGE, "fused": "chunks", "dense": False},
    "no logits": {**LARGE, **TILES},
    "no logits, 2 bytes": {**LARGE, **HALVES, **TILES, "momentum_dtype": "none"},
    "whole fp32 centres": {**CACHED, "split": False, "dense": False},
    "bf16 momentum": {**CACHED, "momentum_dtype": "bf16", "dense": False},
    "bf16 centres and momentum": {**CACHED, **HALVES, "dense": False},
    "bf16 centres, no momentum": {**CACHED, **HALVES, "momentum_dtype": "none", "dense": False},
    "1 % of the mass skipped": {**CACHED, "skip_mass": 0.01, "near": True, "dense": False},
    **{
        f"chunks of {size} MB": {**CACHED, "chunk_bytes": size * MB, "dense": False}
        for size in (16, 64, 128, 256, 512)
    },
    **{
        f"{classes} classes": {**LARGE, "classes": classes, "dense": False}
        for classes in (250_000, 500_000, 2_500_000)
    },
    **{f"batch {batch}": {**LARGE, "batch": batch, "dense": False} for batch in (256, 512, 2048)},
    "a rank's share of 100M": {**SHARE, "dense": False},
    "the same, no logits": {**SHARE, **TILES},
    "the same, no logits, 2 bytes": {**SHARE, **HALVES, **TILES, "momentum_dtype": "none"},
}
