"""Starts the project's programs as a user does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def python(*arguments, **options):
    """`python arguments`, from the project's root; the finished process with its output."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        **options,
    )


def torchrun_command(num_ranks, *arguments):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc_per_node={num_ranks}", *map(str, arguments)]


def torchrun(num_ranks, *arguments):
    """`torchrun --nproc_per_node=num_ranks arguments`; the finished process with its output."""
    return python(*torchrun_command(num_ranks, *arguments)[1:])
