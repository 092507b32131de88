"""Do a machine's GPUs compute together what one does? Two processes, joined as torchrun joins them.

Shapes: B images on this rank, D embedding size.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from kappaface_dist.head import ArcFace, PartialFC
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.planning.gpu_check import Found, Machine

NUM_RANKS, NUM_CLASSES, SIZE, NUM_IMAGES = 2, 500, 64, 32


def check_ranks(machine: Machine) -> Found:
    """The head on two ranks against one: NCCL where there are two GPUs, gloo on the CPU."""
    if machine.device.type == "cuda" and torch.cuda.device_count() < NUM_RANKS:
        return "left out: it takes two GPUs", {"ranks": 1}
    expected = _loss_and_centre(machine.device)
    path = machine.folder / "ranks.pt"
    parallel.call_on_ranks(_on_rank, (str(path), machine.device.type), NUM_RANKS)
    found = torch.load(path, weights_only=True)
    off = float((found - expected).abs().max() / expected.abs().max())
    assert off < 1e-4, f"loss and centres of two ranks are {off:.1e} off those of one"
    backend = "NCCL" if machine.device.type == "cuda" else "gloo"
    return f"{NUM_RANKS} ranks by {backend}: {off:.1e} off one", {"ranks": NUM_RANKS, "off": off}


def _on_rank(rank: int, arguments: tuple[str, str], port: int | None) -> None:
    assert port is not None, (
        "tools/gpu_check.py starts its processes itself: run it without torchrun"
    )
    path, kind = arguments
    if kind == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks: gloo, also beside GPUs
    parallel.take_rank(rank, NUM_RANKS, port)
    found = _loss_and_centre(parallel.start())
    if rank == 0:
        torch.save(found, Path(path))
    parallel.stop()


def _loss_and_centre(device: torch.device) -> torch.Tensor:
    """The loss of one step, and the first centre after it, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    embedding_GD = torch.randn(NUM_IMAGES, SIZE, generator=generator)
    label_G = torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator)
    own = parallel.even_share(NUM_IMAGES)
    rows = slice(own.start, own.stop)
    head = PartialFC(NUM_CLASSES, SIZE, ArcFace(), device=device)
    loss = head(embedding_GD[rows].to(device).requires_grad_(), label_G[rows].to(device))
    loss.backward()
    head.step(0.1)
    return torch.cat([loss.detach()[None], head.weight_KD[0]]).cpu()


RANKS: dict[str, Callable[[Machine], Found]] = {"ranks": check_ranks}
