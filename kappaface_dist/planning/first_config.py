"""A first configuration for a dataset and a machine, with the reason for every choice.

Rules of thumb of the field where nothing is known better, and the plan's memory where it is.
Shapes: C classes, K classes of this shard, G images of a step on all ranks.
"""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from kappaface_dist.config.file import parse_config
from kappaface_dist.planning.memory import JobSize, memory_items
from kappaface_dist.planning.plan import USABLE_SHARE
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.planning.this_machine import Machine

BATCHES = (128, 64, 32, 16, 8)  # per rank, the field's first
FEWEST_STEPS = 20  # of an epoch
MOST_CACHE = 2e9  # bytes of logits between the head's passes
# A margin's statistics may take this share of the memory before the cheaper one is taken.
STATISTICS_SHARE = 0.05


@dataclass(frozen=True)
class Dataset:
    """Attributes:
    train: the path, as data.train has it.
    count_C: images of each class.
    sets: verification sets found beside it, path by name.
    """

    train: str
    count_C: np.ndarray
    sets: Mapping[str, str]

    @property
    def num_images(self) -> int:
        return int(self.count_C.sum())


@dataclass(frozen=True)
class Choice:
    """One key of the configuration, and why it has this value."""

    key: str  # section.key, or a key at the top
    value: Any
    why: str


def choose(name: str, data: Dataset, machine: Machine) -> tuple[list[Choice], dict[str, int]]:
    """(The choices, the plan's bytes of one rank by item).

    The batch is the largest that fits into the memory and leaves some steps to an epoch.
    """
    most = data.num_images / (FEWEST_STEPS * max(machine.num_gpus, 1))
    for batch in [batch for batch in BATCHES if batch <= most] or BATCHES[-1:]:
        choices = _choices(name, data, machine, batch)
        memory = planned_memory(choices, data, machine)
        if sum(memory.values()) <= USABLE_SHARE * machine.memory_bytes:
            break
    return choices, memory


def planned_memory(choices: list[Choice], data: Dataset, machine: Machine) -> dict[str, int]:
    """Bytes of one rank, by item."""
    config = parse_config(as_yaml(choices), "the choices")
    num_ranks = max(machine.num_gpus, 1)
    size = JobSize(len(data.count_C), data.num_images, num_ranks)
    with pretend_ranks(num_ranks):
        return memory_items(config, size, "cuda" if machine.num_gpus else "cpu")


def as_yaml(choices: list[Choice], heading: str = "") -> str:
    """The configuration file, each key below its reason."""
    lines = [f"# {line}" if line else "#" for line in heading.splitlines()]
    section = ""
    for choice in choices:
        before, _, key = choice.key.rpartition(".")
        if before != section:
            section = before
            lines += ["", f"{section}:"] if section else [""]
        indent = "  " if section else ""
        reason = textwrap.wrap(choice.why, 96 - len(indent))
        lines += [f"{indent}# {line}" for line in reason]
        written = yaml.safe_dump({key: choice.value}, sort_keys=False, allow_unicode=True)
        lines += [indent + line for line in written.splitlines()]
    return "\n".join(lines).lstrip("\n") + "\n"


def _choices(name: str, data: Dataset, machine: Machine, batch: int) -> list[Choice]:
    ranks, images, classes = max(machine.num_gpus, 1), data.num_images, len(data.count_C)
    network, why_network = _network(images, machine)
    epochs = (20 if images >= 1_000_000 else 40) if machine.num_gpus else 12
    step_images = batch * ranks
    steps = max(int(epochs * images / step_images), 1)
    each = min(max(images // step_images, 20), 5000)
    reference = 1024 if machine.num_gpus else 128
    return [
        Choice("run.name", name, "the run folder is runs/<name>"),
        Choice(
            "run.epochs",
            epochs,
            f"{steps:,} steps of {step_images} images; the field trains 20 epochs on millions of"
            " images, small sets need more passes, and on a CPU 12 are what a person waits for",
        ),
        Choice("data.train", data.train, f"{images:,} images of {classes:,} identities"),
        Choice(
            "data.batch_size",
            batch,
            f"per process, {step_images} in all: the largest of {BATCHES} that fits into"
            f" {machine.memory_bytes / 1e9:.0f} GB and leaves {FEWEST_STEPS} steps an epoch; less"
            " memory: halve it and set optimizer.accumulate to 2",
        ),
        Choice(
            "data.image_size",
            56 if network == "tiny" else 112,
            "pixels; 112 is what aligned faces and the published networks have, tiny takes a"
            " quarter of the work at 56",
        ),
        Choice(
            "data.augment",
            "flip",
            "mirrored at random; adaface or strong where photos are few or unlike those to come",
        ),
        Choice("backbone.name", network, why_network),
        Choice(
            "backbone.embedding_size",
            128 if network == "tiny" else 512,
            "numbers per face; 512 is the field's",
        ),
        Choice("backbone.channels_last", True, "convolutions are faster so"),
        *_head(classes, step_images, machine),
        *_margin(data, machine),
        Choice("optimizer.name", "sgd", "what the field's results were made with"),
        Choice("optimizer.lr", 0.1, f"for {reference} images a step"),
        Choice(
            "optimizer.reference_batch",
            reference,
            f"the rate follows the batch: {0.1 * step_images / reference:.4g} for {step_images}",
        ),
        Choice("optimizer.schedule", "polynomial", "down to 0 over the whole run"),
        Choice("optimizer.warmup_epochs", 1, "from 0, so that new class centres find their place"),
        Choice("precision", machine.precision, _why_precision(machine)),
        Choice("evaluate.sets", dict(data.sets), _why_sets(data)),
        Choice("evaluate.every", each if data.sets else None, "steps, about an epoch"),
        Choice("checkpoint.every", each, "steps, about an epoch: so much is lost to a crash"),
        Choice("log.every", max(min(50, steps // 100), 1), "steps"),
    ]


def _network(images: int, machine: Machine) -> tuple[str, str]:
    if not machine.num_gpus:
        if images < 50_000:
            return "tiny", "a CPU trains it in minutes; mbf is the next larger"
        return "mbf", "MobileFaceNet, the largest that a CPU trains in days"
    for most, name in ((100_000, "r18"), (1_000_000, "r34"), (10_000_000, "r50")):
        if images < most:
            small = images < 1_000_000
            remedy = (
                "; with so few photos a published network is the better start: backbone.init, and"
                " configs/finetune_r50.yaml"
            )
            return name, f"for fewer than {most:,} images{remedy if small else ''}"
    return "r100", "for ten million images and more"


def _head(classes: int, step_images: int, machine: Machine) -> list[Choice]:
    rows = -(-classes // max(machine.num_gpus, 1))
    sampled = classes > 1_000_000
    rate = 0.2 if sampled else 1.0
    why_rate = (
        f"of each process's {rows:,} classes, besides those of the batch: over a million"
        " identities a sample trains as well in the field's experience"
        if sampled
        else "all classes are negatives in every step: exact, and affordable below a million"
    )
    half = "bf16" if machine.precision == "bf16" else "fp32"
    cache = 0
    if machine.num_gpus:
        cache = int(min(2 * step_images * rows * rate, MOST_CACHE, 0.05 * machine.memory_bytes))
    return [
        Choice("head.sample_rate", rate, why_rate),
        Choice("head.dtype", half, "operands of the head's products, which are summed in fp32"),
        Choice(
            "head.logit_cache_bytes",
            cache,
            "logits kept from the first pass for the second, up to 5 % of a GPU's memory; a CPU is"
            " as fast computing them again",
        ),
    ]


def _margin(data: Dataset, machine: Machine) -> list[Choice]:
    classes = len(data.count_C)
    rows = -(-classes // max(machine.num_gpus, 1))
    size = 512 if machine.num_gpus else 128
    cheap = 4 * size * rows > STATISTICS_SHARE * machine.memory_bytes
    single = int((data.count_C == 1).sum())
    one_photo = f"; {single:,} identities have one photo, and a neutral margin" if single else ""
    return [
        Choice("margin.name", "kappaface", f"larger margins for harder identities{one_photo}"),
        Choice(
            "margin.scale",
            32.0 if classes < 2000 else 64.0,
            "of the logits; 64 is the field's for thousands of identities, fewer need less",
        ),
        Choice(
            "margin.statistic",
            "target_cosine" if cheap else "resultant",
            f"resultant takes {4 * size * rows / 1e6:,.0f} MB of each process for the sums of its"
            " classes; target_cosine needs 12 bytes a class",
        ),
    ]


def _why_precision(machine: Machine) -> str:
    return {
        "bf16": "this GPU's fast type that needs no loss scaling",
        "fp16": "this GPU has no bf16",
        "fp32": "a CPU gains nothing from less",
    }[machine.precision]


def _why_sets(data: Dataset) -> str:
    if data.sets:
        return "the .bin files beside the data"
    return (
        "none was found beside the data: kappaface make-pairs PHOTOS_OF_OTHERS unseen.bin makes"
        " one of people who are not in it, then {unseen: unseen.bin}"
    )
