"""What fault tests do to a run: find its processes, kill them, compare what they leave."""

import os
import signal
import subprocess
import time
from pathlib import Path

import torch

from kappaface_dist.checkpoint.folder import complete_checkpoints
from kappaface_dist.checkpoint.tensors import load_alone, stored_tensors
from kappaface_dist.training.metrics_file import read_metrics
from tests.commands import ENVIRONMENT, ROOT, torchrun_command


def start(num_ranks, path, *overrides, restarts=0, **environment):
    """torchrun in the background; its error output is in .log_path."""
    command = torchrun_command(num_ranks, "launch/train.py", path, *overrides)
    command.insert(3, f"--max-restarts={restarts}")
    log_path = Path(path).with_suffix(".log")
    with log_path.open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**ENVIRONMENT, **environment}, stderr=log, stdout=log
        )
    process.log_path = log_path
    return process


def workers(process):
    """Process numbers of the running ranks, by rank."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        try:
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        ranks = [entry[5:] for entry in environment if entry.startswith(b"RANK=")]
        if ranks and b"train.py" in command:
            found[int(ranks[0])] = int(child)
    return found


def wait_for(condition, process, seconds=120):
    """Until condition() is true; fails when the run ends before."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert process.poll() is None, process.log_path.read_text()[-3000:]
        assert time.monotonic() < deadline, process.log_path.read_text()[-3000:]
        time.sleep(0.002)
    return value


def last_step(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return max((line["step"] for line in lines), default=0)


def kill(process, rank):
    pid = workers(process).get(rank)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def tensors(folder):
    """All tensors of the last checkpoint of a run."""
    last = complete_checkpoints(folder / "checkpoints")[-1]
    found = {
        name: torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in stored_tensors(last).items()
    }
    load_alone(last, found)
    return last.name, found


def assert_same_end(folder, reference):
    """Both runs ended at the same step in the same state, bit by bit."""
    name, found = tensors(folder)
    expected_name, expected = tensors(reference)
    assert name == expected_name
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0, equal_nan=True, msg=key)
