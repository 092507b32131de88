"""Starts the project's programs as a user does."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

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


def exit_line(tool, *arguments):
    """What a tool that refuses its arguments says, run in this process: that is 3 s faster."""
    command = [str(tool), *map(str, arguments)]
    with mock.patch.object(sys, "argv", command), pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / tool), run_name="__main__")
    return stopped.value.code
