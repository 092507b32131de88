"""What of a computer's software and devices trains, what is too old, and what to install."""

import os
import platform
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
from packaging.requirements import Requirement
from packaging.version import Version

from kappaface_dist.planning.this_machine import host_memory, this_machine

OK, ABSENT, BAD = "ok", "absent", "bad"
# What the optional packages are for; extras of setup.py.
EXTRAS = {
    "dali": "decoding on the GPU, drivers of CUDA 12",
    "dali-cuda130": "decoding on the GPU, drivers of CUDA 13",
    "export": "ONNX files",
    "align": "cutting faces out of photos",
    "parquet": ".parquet and .arrow datasets",
    "tinyface": "TinyFace's lists",
    "wandb": "log.wandb",
}
FREE_DISK = 20e9  # bytes: a run's checkpoints and reports
SHARED_MEMORY = 1e9  # bytes: what NCCL takes between eight GPUs, and more
OPEN_FILES = 4096


@dataclass(frozen=True)
class Finding:
    """A line of the report: ok, absent (something optional) or bad (training needs it)."""

    name: str
    verdict: str
    text: str


def examine(folder: Path) -> list[Finding]:
    """Everything that is looked at; folder is where runs will be written.

    Raises:
        ValueError: the folder does not exist.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the one that runs will be written to")
    found = [python(), *packages(), torch_build(), *gpus(), nccl(), apex(), triton()]
    return [*found, memory(), disk(folder), shared_memory(), open_files()]


def python() -> Finding:
    return Finding("Python", OK, f"{platform.python_version()}, {platform.machine()}")


def packages() -> Iterator[Finding]:
    """Versions against the bounds that the installed package has itself."""
    try:
        lines = metadata.requires("kappaface_dist") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", ABSENT, "bounds are unknown, run from a source tree: pip install -e ."
        )
        return
    wanted = [Requirement(line) for line in lines]
    needed = [item for item in wanted if item.marker is None or item.marker.evaluate({"extra": ""})]
    yield from required(needed)
    others = [item for item in wanted if item.marker and item not in needed]

    def of(extra: str) -> list[Requirement]:
        return [item for item in others if item.marker and item.marker.evaluate({"extra": extra})]

    found = [optional(extra, purpose, of(extra)) for extra, purpose in EXTRAS.items()]
    one_dali = any(f.name.startswith("dali") and f.verdict == OK for f in found)
    for finding in found:  # one of the two is enough, and all that can be installed at once
        if finding.verdict == OK or not (one_dali and finding.name.startswith("dali")):
            yield finding


def required(wanted: list[Requirement]) -> Iterator[Finding]:
    """One line for those that are right, and one for each that is not."""
    faults = [(item.name, fault) for item in wanted if (fault := fault_of(item))]
    yield from (Finding(name, BAD, fault) for name, fault in faults)
    if not faults:
        yield Finding("packages", OK, f"all {len(wanted)} that are required, none too old")


def optional(extra: str, purpose: str, wanted: list[Requirement]) -> Finding:
    """An extra: there, too old, or what to install and what for."""
    install = f"pip install 'kappaface_dist[{extra}]'"
    faults = [fault for item in wanted if (fault := fault_of(item))]
    if not wanted:
        return Finding(extra, ABSENT, f"for {purpose}: not to be had on {platform.system()}")
    if not faults:
        versions = ", ".join(f"{item.name} {metadata.version(item.name)}" for item in wanted)
        return Finding(extra, OK, f"{versions}: for {purpose}")
    return Finding(extra, ABSENT, f"for {purpose}: {'; '.join(faults)}: {install}")


def fault_of(wanted: Requirement) -> str:
    """What is wrong with an installed package, or ""."""
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{wanted.name} is not installed, expected {wanted.specifier or 'any version'}"
    if wanted.specifier.contains(Version(version), prereleases=True):
        return ""
    return f"{wanted.name} {version} is too old, expected {wanted.specifier}: pip install -U"


def torch_build() -> Finding:
    """Whether torch can use the GPU that is there."""
    cuda = torch.version.cuda
    build = f"torch {torch.__version__} for {f'CUDA {cuda}' if cuda else 'CPUs'}"
    if torch.cuda.is_available():
        return Finding("CUDA", OK, f"{build}, driver found")
    if not Path("/dev/nvidia0").exists():
        return Finding("CUDA", ABSENT, f"{build}; no GPU is here (no /dev/nvidia0): CPUs train")
    if cuda is None:
        return Finding("CUDA", BAD, f"a GPU is here, but {build}: install a CUDA build of torch")
    return Finding(
        "CUDA", BAD, f"a GPU is here, but {build} finds no driver for it: nvidia-smi says which"
    )


def gpus() -> Iterator[Finding]:
    if torch.cuda.is_available():
        machine = this_machine()
        less = "" if machine.precision == "bf16" else "; no bf16: set precision=fp16"
        yield Finding("GPUs", OK, f"{machine}{less}")


def nccl() -> Finding:
    """The library that GPUs talk through; CPUs use gloo, which torch always has."""
    if not torch.cuda.is_available():
        return Finding("NCCL", ABSENT, "for several GPUs; CPUs use gloo")
    if not dist.is_nccl_available():
        return Finding("NCCL", BAD, "this build of torch has none: several GPUs cannot train")
    version = ".".join(map(str, torch.cuda.nccl.version()))
    return Finding("NCCL", OK, version)


def apex() -> Finding:
    if find_spec("apex") is None:
        return Finding(
            "apex", ABSENT, "for optimizer.implementation=apex: NVIDIA's containers have it"
        )
    if find_spec("amp_C") is None:
        return Finding("apex", ABSENT, "is here without its kernels (amp_C): build it with them")
    return Finding("apex", OK, "with its kernels")


def triton() -> Finding:
    if find_spec("triton") is None:
        return Finding("Triton", ABSENT, "for head.fused on GPUs: a CUDA build of torch brings it")
    return Finding("Triton", OK, metadata.version("triton"))


def memory() -> Finding:
    return Finding("memory", OK, f"{host_memory() / 1e9:.0f} GB, {this_machine().cores} cores")


def disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Finding("disk", BAD, f"{folder} cannot be written: go to a folder that can")
    text = f"{free / 1e9:.0f} GB free in {folder.resolve()}"
    if free < FREE_DISK:
        return Finding(
            "disk", ABSENT, f"{text}: little for checkpoints; run.folder=PATH is elsewhere"
        )
    return Finding("disk", OK, text)


def shared_memory(place: Path = Path("/dev/shm")) -> Finding:
    if not place.is_dir():
        return Finding("shared memory", ABSENT, f"there is no {place}: one process only")
    size = shutil.disk_usage(place).total
    text = f"{size / 1e9:.1f} GB in {place}"
    if size < SHARED_MEMORY:
        return Finding("shared memory", BAD, f"{text} is too little: docker run --shm-size 8g")
    return Finding("shared memory", OK, text)


def open_files(limit: Callable[[int], tuple[int, int]] = resource.getrlimit) -> Finding:
    soft, hard = limit(resource.RLIMIT_NOFILE)
    if 0 <= soft < OPEN_FILES:
        return Finding("open files", ABSENT, f"{soft} at once: ulimit -n {min(hard, 65536)} before")
    return Finding("open files", OK, f"{soft if soft >= 0 else 'any number'} at once")
