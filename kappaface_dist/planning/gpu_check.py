"""Does this machine's GPU compute what its CPU does? Checks for the first run on a new machine.

Each takes a `Machine` and returns what it found in words, with figures, or raises: AssertionError
where the two disagree. All here go over one small dataset of made-up faces.
"""

import functools
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kappaface_dist.checkpoint.folder import complete_checkpoints
from kappaface_dist.commands import end_with_parent
from kappaface_dist.config.file import load_config
from kappaface_dist.config.keys import Config
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.made_up_faces.dataset import render_face, write_faces
from kappaface_dist.models.embedder import load_embedder
from kappaface_dist.models.export import save_backbone
from kappaface_dist.models.saved_model import backbone_settings
from kappaface_dist.training.build import build_job
from kappaface_dist.training.trainer import Trainer

CPU = torch.device("cpu")
# Of a loss, relative. Training is chaotic: a difference in the last bit of such a network is one of
# 0.2 % in the fourth step, up to 4 % in the eighth and 15 % after 40 (an H100 and two CPUs). So the
# CPU's losses are met by the very first ones, which a wrong gradient or update would move, and by
# the mean of the last ones; those of the same GPU, asked to repeat itself, by each.
FIRST, FIRST_TOLERANCE = 4, 0.02
LAST, LAST_TOLERANCE = 8, 0.1
REPEAT_TOLERANCE = 1e-6
# Two decoders may round colours apart; more of one in 255 on average is another filter or order.
PIXEL_TOLERANCE = 2 / 127.5
KILL_SECONDS = 180.0


class Failed(AssertionError):
    """Something is wrong, and `figures` is what was measured all the same."""

    def __init__(self, words: str, figures: dict[str, Any]):
        super().__init__(words)
        self.figures = figures


@dataclass(frozen=True)
class Machine:
    """What is checked, where the checks may write, and whether the smallest sizes will do.

    Attributes:
        deadline: of time.monotonic(): what takes long and can be left out is, beyond it.
    """

    device: torch.device
    folder: Path
    quick: bool
    deadline: float = math.inf

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
    first = float((np.abs(found - expected) / expected)[:FIRST].max())
    last = abs(float(found[-LAST:].mean() / expected[-LAST:].mean()) - 1.0)
    figures = {"losses": found.tolist(), "cpu_losses": expected.tolist()}
    figures |= {"first_off": first, "last_off": last}
    words = (
        f"losses from {found[0]:.3f} to {found[-1]:.3f}, off the CPU's by {first:.2g} at most in"
        f" the first {FIRST} steps, by {last:.2g} in the mean of the last"
    )
    if not (first < FIRST_TOLERANCE and last < LAST_TOLERANCE):
        raise Failed(f"{words}; allowed are {FIRST_TOLERANCE:g} and {LAST_TOLERANCE:g}", figures)
    if not found[-LAST:].mean() < found[:LAST].mean():
        raise Failed(f"the loss does not fall: {words}", figures)
    return words, figures


@contextmanager
def repeatable() -> Iterator[None]:
    """A GPU computes the same twice, and convolutions in fp32, not in the 10 bits of TF32."""
    before = torch.are_deterministic_algorithms_enabled()
    # What has no such way says so in a warning, and the verdict tells whether it mattered.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def train(config: Config, device: torch.device) -> list[float]:
    """Train, repeatably, from where its folder is; the loss of each step."""
    with repeatable():
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
    try:
        while not complete_checkpoints(config.folder / "checkpoints"):
            assert child.is_alive(), "the run to be killed ended before its first checkpoint"
            assert time.monotonic() < deadline, f"no checkpoint after {KILL_SECONDS:.0f} s"
            time.sleep(0.05)
    finally:  # otherwise a check that failed would go on beside the next, and be waited for
        child.kill()
        child.join()
    again = train(config, machine.device)
    off = float(np.max(np.abs(np.array(again) - whole) / np.array(whole)))
    if not off <= REPEAT_TOLERANCE:
        raise Failed(f"the losses after a kill are {off:.2g} off those without", {"off": off})
    return f"killed at a checkpoint and gone on: losses {off:.1e} off", {"off": off}


def train_slowly(config: Config, device: torch.device) -> None:
    """`train`, with enough time after each checkpoint to be killed."""
    end_with_parent()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # a new process begins on the first
    with repeatable():
        trainer = Trainer(build_job(config, device))
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
    "loader": check_loader,
    "training": check_training,
    "kill and resume": check_resuming,
    "evaluation and export": check_evaluation_and_export,
}
