"""Does the head on this machine's GPU compute what float64 on its CPU does? Every margin of it.

Shapes: B images, D embedding size.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from kappaface_dist.head import PartialFC, build_margin
from kappaface_dist.head.margins.build import MARGINS
from kappaface_dist.planning.gpu_check import CPU, Failed, Found, Machine

# Those that take a GPU and Triton.
IN_CHUNKS, IN_TILES = "bf16 in chunks", "bf16 in tiles"
# Of each kind, and what it may be off, relative to the norm of what float64 finds: bf16 rounds
# operands to 8 bits, 2^-9.
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "fp32": ({"dtype": torch.float32}, 2e-4),
    "bf16": ({"dtype": torch.bfloat16, "fused": "off"}, 2e-2),
    IN_CHUNKS: ({"dtype": torch.bfloat16, "fused": "chunks"}, 2e-2),
    IN_TILES: ({"dtype": torch.bfloat16, "fused": "tiles"}, 2e-2),
}


def check_head(machine: Machine, kind: str) -> Found:
    """Every margin in one of KINDS."""
    settings, allowed = KINDS[kind]
    on_gpu = machine.device.type == "cuda"
    if kind in (IN_CHUNKS, IN_TILES) and not (on_gpu and importlib.util.find_spec("triton")):
        return "left out: they take a GPU and Triton", {}
    # A tile knows no margin that changes the other classes' logits.
    names = [n for n, m in MARGINS.items() if kind != IN_TILES or m.largest_cosine == 1.0]
    off: dict[str, dict[str, float]] = {}
    for name in names:
        expected = _step(name, CPU, dtype=torch.float64)
        found = _step(name, machine.device, **settings)
        off[name] = {
            what: float((found[what].double() - value).norm() / value.norm())
            for what, value in expected.items()
        }
    parts = {f"{name}: {what}": value for name, own in off.items() for what, value in own.items()}
    # Not `value > allowed`: NaN is wrong, too.
    wrong = [
        f"{part} is off by {value:.2g}" for part, value in parts.items() if not value < allowed
    ]
    if wrong:
        raise Failed(f"{', '.join(wrong)} of its norm; allowed are {allowed:g}", {"off": off})
    worst = max(parts.values())
    return f"{len(names)} margins agree with float64, {worst:.1e} off at most", {"off": off}


def _step(
    name: str, device: torch.device, *, dtype: torch.dtype, fused: str = "off"
) -> dict[str, torch.Tensor]:
    """What one step gives and changes, on the CPU."""
    settings = {"deviation": 0.0} if name == "elasticface" else {}  # no drawing: others' numbers
    margin = dataclasses.replace(build_margin(name, **settings), scale=16.0)
    head = PartialFC(600, 64, margin, dtype=dtype, fused=fused, device=device)
    head.take_chunks_of(256)  # two whole ones and a part, of which a tile is not whole either
    start = head.weight_KD.detach().clone()
    generator = torch.Generator().manual_seed(0)
    embedding_BD = torch.randn(32, 64, generator=generator, dtype=torch.float64)
    label_B = torch.randint(600, (32,), generator=generator).to(device)
    embedding_BD = embedding_BD.to(device, head.state_dtype).requires_grad_()
    loss = head(embedding_BD, label_B)
    loss.backward()
    head.step(0.1)
    assert embedding_BD.grad is not None
    tensors = {
        "the loss": loss.detach(),
        "the embeddings' gradient": embedding_BD.grad,
        "the centres' change": head.weight_KD - start,
    }
    return {what: tensor.cpu() for what, tensor in tensors.items()}


HEADS: dict[str, Callable[[Machine], Found]] = {
    f"head in {kind}": partial(check_head, kind=kind) for kind in KINDS
}
