"""Does this machine's GPU compute what its CPU does? Checks for the first run on a new machine.

Each takes a `Machine` and returns what it found in words, with figures, or raises: AssertionError
where the two disagree. All but the head go over one small dataset of made-up faces.
Shapes: B images, D embedding size.
"""

import dataclasses
import functools
import importlib.util
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kappaface_dist.checkpoint.folder import complete_checkpoints
from kappaface_dist.config.file import load_config
from kappaface_dist.config.keys import Config
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.head import PartialFC, build_margin
from kappaface_dist.head.margins.build import MARGINS
from kappaface_dist.made_up_faces.dataset import render_face, write_faces
from kappaface_dist.models.embedder import load_embedder
from kappaface_dist.models.export import save_backbone
from kappaface_dist.models.saved_model import backbone_settings
from kappaface_dist.training.build import build_job
from kappaface_dist.training.trainer import Trainer

CPU = torch.device("cpu")
# Of the head: relative to the norm of what float64 finds. bf16 rounds operands to 8 bits, 2^-9.
TOLERANCES = {"fp32": 2e-4, "bf16": 2e-2, "bf16 in chunks": 2e-2, "bf16 in tiles": 2e-2}
# Of a loss in the first steps, relative. Convolutions on a GPU multiply in TF32, 10 bits, and a
# difference grows from step to step.
LOSS_TOLERANCE = 0.03
# Two decoders may round colours apart; more of one in 255 on average is another filter or order.
PIXEL_TOLERANCE = 2 / 127.5
KILL_SECONDS = 180.0


@dataclass(frozen=True)
class Machine:
    """What is checked, where the checks may write, and whether the smallest sizes will do."""

    device: torch.device
    folder: Path
    quick: bool

    @functools.cached_property
    def data(self) -> Path:
        """A small dataset of made-up faces, drawn when it is first asked for."""
        folder = self.folder / "faces"
        people, unseen = (16, 4) if self.quick else (100, 30)
        write_faces(
            folder, num_identities=people, num_unseen=unseen, seed=0, image_size=56, processes=1
        )
        return folder

    def config(self, name: str, **run: Any) -> Config:
        """A short run on that dataset."""
        path = self.folder / f"{name}.yaml"
        (self.folder / name).mkdir(exist_ok=True)
        path.write_text(
            json.dumps(
                {
                    "run": {"name": name, "folder": str(self.folder / name), **run},
                    "data": {
                        "train": str(self.data / "train.rec"),
                        "batch_size": 16,
                        "image_size": 56,
                        "num_threads": 2,
                    },
                    "backbone": {"name": "tiny", "embedding_size": 64},
                    "margin": {"name": "kappaface", "scale": 32},
                    "optimizer": {"lr": 0.05},
                    "evaluate": {"sets": {"unseen": str(self.data / "unseen.bin")}},
                    "checkpoint": {"every": 4},
                    "log": {"every": 1, "tensorboard": False},
                }
            )
        )
        return load_config(path)

    @property
    def num_steps(self) -> int:
        return 8 if self.quick else 40


Found = tuple[str, dict[str, Any]]


def check_head(machine: Machine) -> Found:
    """Every margin in fp32, bf16, and with the kernels where they run, against float64."""
    kinds: dict[str, dict[str, Any]] = {
        "fp32": {"dtype": torch.float32},
        "bf16": {"dtype": torch.bfloat16, "fused": "off"},
    }
    if machine.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        kinds["bf16 in chunks"] = {"dtype": torch.bfloat16, "fused": "chunks"}
        kinds["bf16 in tiles"] = {"dtype": torch.bfloat16, "fused": "tiles"}
    worst = dict.fromkeys(kinds, 0.0)
    for name in MARGINS:
        expected = _head_step(name, CPU, dtype=torch.float64)
        for kind, settings in kinds.items():
            if kind == "bf16 in tiles" and MARGINS[name].largest_cosine != 1.0:
                continue  # which tiles do not have
            found = _head_step(name, machine.device, **settings)
            for what, value in expected.items():
                off = float((found[what].double() - value).norm() / value.norm())
                assert off < TOLERANCES[kind], (
                    f"{name} in {kind}: {what} is off by {off:.2g} of its norm, allowed are"
                    f" {TOLERANCES[kind]:g}"
                )
                worst[kind] = max(worst[kind], off)
    words = ", ".join(f"{kind} {off:.1e}" for kind, off in worst.items())
    return f"{len(MARGINS)} margins agree with float64; worst: {words}", {"worst": worst}


def _head_step(name: str, device: torch.device, **settings: Any) -> dict[str, torch.Tensor]:
    """What one step gives and changes, on the CPU."""
    own = {"deviation": 0.0} if name == "elasticface" else {}  # no drawing: others' numbers
    margin = dataclasses.replace(build_margin(name, **own), scale=16.0)
    head = PartialFC(600, 64, margin, device=device, **settings)
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


def check_loader(machine: Machine) -> Found:
    """The device's loader against the threads of the CPU: labels and pixels."""
    catalog = open_catalog(str(machine.data / "train.rec"))

    def batches(device: torch.device, loader: str) -> list[Any]:
        made = build_loader(catalog, loader=loader, batch_size=16, image_size=56, device=device)
        return list(made.batches(0, 4))

    largest = 0.0
    for found, expected in zip(batches(machine.device, "auto"), batches(CPU, "cpu"), strict=True):
        assert torch.equal(found.label_B.cpu(), expected.label_B), "the labels are not in order"
        off = float((found.image_B3HW.cpu() - expected.image_B3HW).abs().mean())
        assert off < PIXEL_TOLERANCE, f"pixels are off by {off * 127.5:.2f} of 255 on average"
        largest = max(largest, off * 127.5)
    return f"64 images, off by {largest:.3f} of 255 at most", {"pixels": largest}


def check_training(machine: Machine) -> Found:
    """A short training against the same on the CPU, by its losses."""
    expected, found = (
        np.array(train(machine.config(name, steps=machine.num_steps), device))
        for name, device in (("on_the_cpu", CPU), ("on_the_device", machine.device))
    )
    off = float((np.abs(found - expected) / expected).max())
    assert off < LOSS_TOLERANCE, (
        f"the losses are {np.round(found, 3).tolist()}, those of the CPU"
        f" {np.round(expected, 3).tolist()}: {off:.1%} apart, allowed are {LOSS_TOLERANCE:.0%}"
    )
    assert found[-1] < found[0], f"the loss does not fall: {found[0]:.3f} to {found[-1]:.3f}"
    words = f"{len(found)} losses from {found[0]:.3f} to {found[-1]:.3f}, {off:.2%} off the CPU's"
    return words, {"losses": found.tolist(), "off": off}


def train(config: Config, device: torch.device) -> list[float]:
    """Train from where its folder is; the loss of each step."""
    job = build_job(config, device)
    assert Trainer(job).fit(), "the training was stopped by a signal"
    lines = (config.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    by_step = {n["step"]: n["loss"] for n in map(json.loads, lines) if "loss" in n}
    return [by_step[step] for step in sorted(by_step)]


def check_resuming(machine: Machine) -> Found:
    """A run that is killed and goes on, against one that was not."""
    whole = train(machine.config("whole", steps=machine.num_steps), machine.device)
    config = machine.config("killed", steps=machine.num_steps)
    child = multiprocessing.get_context("spawn").Process(
        target=train_slowly, args=(config, machine.device)
    )
    child.start()
    deadline = time.monotonic() + KILL_SECONDS
    while not complete_checkpoints(config.folder / "checkpoints"):
        assert child.is_alive(), "the run to be killed ended before its first checkpoint"
        assert time.monotonic() < deadline, f"no checkpoint after {KILL_SECONDS:.0f} s"
        time.sleep(0.05)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    again = train(config, machine.device)
    off = float(np.max(np.abs(np.array(again) - whole) / np.array(whole)))
    assert off < LOSS_TOLERANCE, f"the losses after a kill are {off:.1%} off those without"
    return f"killed at a checkpoint and gone on: losses {off:.1e} off", {"off": off}


def train_slowly(config: Config, device: torch.device) -> None:
    """`train`, with enough time after each checkpoint to be killed."""
    job = build_job(config, device)
    trainer = Trainer(job)
    save = trainer.save

    def save_and_wait(*args: Any) -> None:
        save(*args)
        trainer.saver.finish()
        time.sleep(KILL_SECONDS)

    trainer.save = save_and_wait  # type: ignore[method-assign, assignment]
    trainer.fit()


def check_evaluation_and_export(machine: Machine) -> Found:
    """Embeddings and accuracy of one network on the device, on the CPU, and of its export."""
    config = machine.config("evaluated", steps=4)
    job = build_job(config, machine.device)
    trainer = Trainer(job)
    trainer.fit()
    accuracy = trainer.results["unseen"].accuracy
    path = machine.folder / "backbone.safetensors"
    save_backbone(path, job.network, **vars(backbone_settings(config)))
    faces = [render_face(1, person, 0, 56) for person in range(8)]
    there, here = (load_embedder(path, device).embed(faces) for device in (machine.device, CPU))
    cosine = float((there * here).sum(axis=1).min())
    assert cosine > 0.999, f"an exported embedding and its CPU's have a cosine of {cosine:.4f} only"
    return f"accuracy {accuracy}, exported embeddings' cosine {cosine:.6f}", {"cosine": cosine}


CHECKS: dict[str, Callable[[Machine], Found]] = {
    "head": check_head,
    "loader": check_loader,
    "training": check_training,
    "kill and resume": check_resuming,
    "evaluation and export": check_evaluation_and_export,
}
