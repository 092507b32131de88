"""The kernels that write no logits under Triton's interpreter, against the plain passes.

The interpreter is chosen when Triton is imported, so the comparison runs in a process of its own.
"""

import importlib
import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kappaface_dist.head import AdamWRows, ArcFace, CurricularFace, PartialFC, SGDRows
from kappaface_dist.head.softmax import settings as head_settings
from kappaface_dist.head.softmax.tile_sizes import SIZES, SMALL

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
# The plain passes round Q and the weighted embeddings to bf16, the kernels their product once, and
# the interpreter cuts off where a GPU rounds: 2^-7 at most for one number.
CLOSE = 1e-2
LR = 0.001
ROOT = Path(__file__).resolve().parents[4]


def draw_shape(rng):
    """A head and a batch in any combination of sizes and settings."""
    centre_dtype = rng.choice([None, torch.bfloat16])
    return {
        "classes": rng.choice([1, 2, 17, 64, 65, 130, 200, 333]),
        "images": rng.choice([1, 2, 3, 16, 40, 64, 65, 100]),
        "size": rng.choice([1, 8, 16, 33, 48, 64, 100, 128, 192, 512]),
        "scale": rng.choice([4.0, 16.0, 64.0, 70.0]),
        "micro_batches": rng.choice([1, 1, 1, 2]),
        "head": {
            "sample_rate": rng.choice([1.0, 1.0, 0.4]),
            "filter_threshold": rng.choice([None, None, 0.4]),
            "centre_dtype": centre_dtype,
            "split_centres": None if centre_dtype else True,
            "optimizer": rng.choice(
                [
                    SGDRows(),
                    SGDRows(momentum_dtype=torch.bfloat16),
                    SGDRows(momentum=0.0, weight_decay=0.0, lr_factor=10.0),
                ]
            ),
        },
        "skip": rng.choice([None, None, False, True]),
        "seed": rng.randrange(1 << 30),
        "cut_for": rng.choice([80, 89, 90, 100]),
    }


def step(shape, fused, device):
    """What a step gives and changes: loss, gradients, share at rank one, centres, momentum."""
    head = PartialFC(
        shape["classes"],
        shape["size"],
        ArcFace(scale=shape["scale"]),
        dtype=torch.bfloat16,
        fused=fused,
        seed=shape["seed"],
        device=device,
        **shape["head"],
    )
    generator = torch.Generator().manual_seed(shape["seed"])
    count = shape["images"]
    losses, gradients = [], []
    head.rank_one.start()
    labels = torch.randint(shape["classes"], (shape["micro_batches"], count), generator=generator)
    head.announce(labels.flatten().to(device))
    for label_G in labels:
        embedding_GD = torch.randn(count, shape["size"], generator=generator).to(device)
        embedding_GD.requires_grad_()
        loss = head(embedding_GD, label_G.to(device))
        loss.backward()
        losses.append(loss.detach())
        gradients.append(embedding_GD.grad)
    start_KD = head.weight_KD.detach().float().clone()
    head.step(LR, skip=None if shape["skip"] is None else torch.tensor(shape["skip"]).to(device))
    state = head.sharded_state()
    return {
        "loss": torch.stack(losses),
        "embeddings": torch.stack(gradients),
        "moved": state["weight"].float() - start_KD,
        "momentum": state.get("optimizer.momentum", start_KD).float(),
        "rank_one": head.rank_one.take(),
    }


def compare(shape, device, expect="off"):
    found, expected = (step(shape, fused, device) for fused in ("tiles", expect))
    assert found.pop("rank_one") == expected.pop("rank_one"), shape
    rounded = shape["head"]["centre_dtype"] is not None
    for name, value in expected.items():
        assert found[name].isfinite().all(), (name, shape)
        if shape["size"] == 1 and name != "loss":
            continue  # one number has no direction: its gradients are what rounding left of zero
        # Where updates are apart by a share x of a step of bf16, x of them round apart by a step.
        close = 4 * CLOSE if rounded and name == "moved" else CLOSE
        off = (found[name] - value).norm()
        assert off <= close * value.norm() + 1e-6 * value.numel() ** 0.5, (name, float(off), shape)


def cut_for(capability):
    """Let the interpreter run the kernels as they are cut for a GPU."""
    for name in ("sums", "update"):
        module = importlib.import_module(f"kappaface_dist.head.softmax.tile_{name}")
        module.sizes_of = lambda kernel, _: SIZES[kernel].get(capability, SMALL)


def compare_many(count, device):
    rng = random.Random(0)
    for _ in range(count):
        shape = draw_shape(rng)
        if device == "cpu":
            cut_for(shape["cut_for"])
        compare(shape, device)
    print("same:", count)


def run_interpreted(count):
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.head.softmax.test_tiles", str(count)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"same: {count}" in done.stdout


def test_the_tiles_compute_what_the_plain_passes_do():
    run_interpreted(10)


@pytest.mark.long
def test_the_tiles_compute_what_the_plain_passes_do_over_many_shapes():
    run_interpreted(200)


@pytest.mark.parametrize(
    ("settings", "size", "words"),
    [
        (
            {},
            600,
            "embeddings have 600 numbers, .* 512: set backbone.embedding_size to less",
        ),
        ({"split_centres": False}, 8, "whole fp32 numbers: set split_centres to true"),
        ({"logit_cache_bytes": 5}, 8, "head.logit_cache_bytes is 5.*: set it to 0"),
        ({"skip_mass": 0.01}, 8, "head.skip_mass is 0.01.*: set it to 0"),
        ({"margin": CurricularFace(scale=16.0)}, 8, "set margin.name to another"),
        ({"margin": ArcFace(scale=100.0)}, 8, "margin.scale is 100.0.*: set it to 72 or less"),
        ({"optimizer": AdamWRows()}, 8, "not that of sgd: set optimizer.name to sgd"),
    ],
)
def test_what_the_tiles_cannot_do_is_refused_in_a_sentence(settings, size, words, monkeypatch):
    monkeypatch.setattr(head_settings, "triton_kernels", lambda _: object())
    settings = {"margin": ArcFace(), "split_centres": True, **settings}
    with pytest.raises(
        ValueError, match=f"head.fused is tiles, but .*{words}, or head.fused to auto"
    ):
        PartialFC(10, size, fused="tiles", dtype=torch.bfloat16, **settings)


def test_tiles_take_a_gpu_and_bf16():
    with pytest.raises(ValueError, match=r"head.dtype is torch.float32: set it to bf16, or head"):
        PartialFC(10, 8, ArcFace(), fused="tiles")
    if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
        with pytest.raises(ValueError, match="there is no GPU with Triton here"):
            PartialFC(10, 8, ArcFace(), fused="tiles", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="fused is 'some'"):
        PartialFC(10, 8, ArcFace(), fused="some")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_tiles_on_a_gpu():
    compare_many(60, "cuda")


if __name__ == "__main__":
    torch.set_num_threads(1)
    compare_many(int(sys.argv[1]), "cpu")
