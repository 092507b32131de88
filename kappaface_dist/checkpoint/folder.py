"""The folder with a run's checkpoints: which are whole, which one to go on from, which to delete.

    step_00001000            a whole checkpoint; only a rename makes one
    step_00001000.part       being written; its checksums are written last
    step_00001000.old        replaced or outdated, being deleted
    step_00001000.damaged    found damaged at a start, left for its owner to look at

Nothing here is collective; rank 0 alone changes the folder.
"""

import hashlib
import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

from kappaface_dist.checkpoint.index import INDEX

logger = logging.getLogger(__name__)
CHECKSUMS = "SHA256SUMS"  # in the form that `sha256sum -c` reads
NUMBERS = "state.json"
# Set by torchrun and by Slurm when they start the same command again.
RESTART_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def step_folder(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def part_folder(folder: Path) -> Path:
    return folder.with_name(folder.name + ".part")


def complete_checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints below root, oldest first."""
    return sorted(
        path.parent for path in root.glob(f"step_*/{CHECKSUMS}") if path.parent.name[5:].isdigit()
    )


def read_numbers(folder: Path) -> dict[str, Any]:
    """The numbers of a checkpoint.

    Raises:
        ValueError: they are absent or damaged.
    """
    try:
        return json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} is not a complete checkpoint: {error}") from error


def check_free_space(root: Path, num_bytes: int) -> None:
    """Raise RuntimeError if a checkpoint of num_bytes does not fit; root exists."""
    free = shutil.disk_usage(root).free
    # The index, the numbers and the file system's own blocks come on top of the tensors.
    needed = num_bytes * 1.02 + 1e6
    if free < needed:
        raise RuntimeError(
            f"a checkpoint of {num_bytes / 1e6:.0f} MB needs {needed / 1e6:.0f} MB in {root}, and"
            f" {free / 1e6:.0f} MB are free: make room, or lower checkpoint.keep"
        )


def checksum(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(folder: Path, checksums: dict[str, str]) -> None:
    """Turn folder.part, whose files are all written, into the checkpoint `folder`."""
    part = part_folder(folder)
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(checksums.items()))
    write_synced(part / CHECKSUMS, text)
    _sync(part)
    if folder.exists():
        # A crash between the renames leaves folder.part whole: see finish_interrupted_saves().
        folder.rename(_outdated(folder))
    part.rename(folder)
    _sync(folder.parent)


def finish_interrupted_saves(root: Path) -> None:
    """Finish what a crash interrupted between writing a checkpoint and giving it its name."""
    for sums in root.glob(f"step_*.part/{CHECKSUMS}"):
        folder = sums.parent.with_name(sums.parent.name.removesuffix(".part"))
        # A crash while the checksums are written leaves an absent line or half of one.
        if not folder.exists() and not damages(sums.parent, 0, 1):
            sums.parent.rename(folder)


def damages(folder: Path, first: int, stride: int, needed: set[str] | None = None) -> list[str]:
    """What is wrong with a checkpoint's files; looks at every stride-th file from first on.

    Args:
        needed: names of the files that matter; None for all.
    """
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        stored = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, UnicodeDecodeError, ValueError) as error:
        return [f"{CHECKSUMS} cannot be read ({error})"]
    if not {INDEX, NUMBERS} <= stored.keys():
        return [f"{CHECKSUMS} is incomplete"]
    found = []
    for name in sorted(stored if needed is None else needed)[first::stride]:
        path = folder / name
        if Path(name).name != name or not path.is_file():
            found.append(f"{name} is missing")
        elif name not in stored:
            found.append(f"{CHECKSUMS} does not name {name}")
        elif checksum(path) != stored[name]:
            found.append(f"{name} does not have its checksum")
    return found


def check_undamaged(folder: Path, needed: set[str]) -> None:
    """Raise ValueError if one of the needed files of a checkpoint is damaged.

    A checkpoint without checksums is used, with a warning.
    """
    if not (folder / CHECKSUMS).exists():
        logger.warning("%s has no %s: its files are used unchecked", folder, CHECKSUMS)
        return
    problems = damages(folder, 0, 1, needed)
    if problems:
        raise ValueError(
            f"checkpoint {folder} is damaged ({'; '.join(problems)}): restore it, or take another"
        )


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint so that it is not chosen again; returns its new place."""
    place = folder.with_name(folder.name + ".damaged")
    if place.exists():
        shutil.rmtree(place)
    return folder.rename(place)


def choose(root: Path, resume: str) -> Path | None:
    """The checkpoint to go on from, or None to start afresh.

    Args:
        root: the run's checkpoints.
        resume: "auto" for the last complete one, "never", or the path of a checkpoint. When
            torchrun or Slurm starts the command again after a fault, it means "auto" in any case.

    Raises:
        ValueError: nothing is at that path; "never" in a folder that has checkpoints, or the path
            of one that is not the last there: a later start would confuse the two histories.
    """
    found = complete_checkpoints(root)
    restarted = any(int(os.environ.get(name) or 0) > 0 for name in RESTART_COUNTS)
    if resume == "auto" or (restarted and found):
        return found[-1] if found else None
    if resume == "never":
        if found:
            raise ValueError(
                f"run.resume is never, but {found[-1]} exists: choose another run.name, or delete"
                f" {root}"
            )
        return None
    path = Path(resume)
    if not (path / CHECKSUMS).is_file():
        raise ValueError(f"run.resume is {resume}, which is not a complete checkpoint")
    if found and path.resolve() != found[-1].resolve():
        raise ValueError(
            f"run.resume is {resume}, but this run has gone on to {found[-1]}: set run.resume=auto"
            " to go on from there, or give another run.name"
        )
    return path


def delete_old(root: Path, keep: int, best: str | None) -> None:
    """Delete all but the last `keep` complete checkpoints and the best one.

    Args:
        best: name of the metric of which the checkpoint with the highest value stays.
    """
    complete = complete_checkpoints(root)
    kept = complete[-keep:]
    if best is not None and complete:
        kept.append(max(complete, key=lambda folder: _metric(folder, best)))
    for folder in complete:
        if folder not in kept:
            # Renamed first: a crash while deleting must not leave half a checkpoint of that name.
            folder.rename(_outdated(folder))
    for folder in (*root.glob("step_*.old"), *root.glob("step_*.part")):
        shutil.rmtree(folder)


def _metric(folder: Path, name: str) -> float:
    value = read_numbers(folder)["metrics"].get(name)
    return -math.inf if value is None else value


def _outdated(folder: Path) -> Path:
    place = folder.with_name(folder.name + ".old")
    if place.exists():
        shutil.rmtree(place)
    return place


def write_synced(path: Path, text: str) -> None:
    """Write a file whose content survives a power cut; its name does once the folder is synced."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make renames and new names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
