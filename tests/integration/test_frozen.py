"""A node that is frozen whole, and a torchrun that has died: no rank stays behind in silence."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.commands import ENVIRONMENT, ROOT
from tests.integration.faults import wait_for
from tests.processes import free_port

SCRIPT = """
import sys, time, torch.distributed as dist
from kappaface_dist.commands import tell_torchrun
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.parallel.watchdog import Watchdog
from kappaface_dist.training.run_log import start_logging
parallel.start()
start_logging(None)
with Watchdog(float(sys.argv[1]), tell_torchrun) as watchdog:
    for step in range(10**9):
        watchdog.tick(step, "training")
        parallel.barrier()
        if step == 3:
            print("at work", flush=True)
        time.sleep(0.05)
"""


@pytest.fixture
def nodes(tmp_path):
    """Start torchruns that train together; all that is left of them is killed in the end."""
    (tmp_path / "script.py").write_text(SCRIPT)
    port, started = free_port(), []

    def _nodes(count, timeout, nproc=1, **environment):
        for number in range(count):
            log = tmp_path / f"{number}.log"
            with log.open("w") as file:
                process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={count}"),
                        *(f"--nproc_per_node={nproc}", "--rdzv_backend=c10d"),
                        *(f"--rdzv_endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"),
                        *(str(tmp_path / "script.py"), str(timeout)),
                    ],
                    cwd=ROOT,
                    env={**ENVIRONMENT, **environment},
                    stdout=file,
                    stderr=file,
                )
            process.log_path = log
            started.append(process)
        for process in started:
            wait_for(lambda log=process.log_path: "at work" in log.read_text(), process)
        return {process: ranks(process) for process in started}

    yield _nodes
    for process in started:
        for pid in [*ranks(process).values(), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def ranks(process):
    """Process numbers of a torchrun's ranks, by rank."""
    found = {}
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            for entry in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                if entry.startswith(b"RANK="):
                    found[int(entry[5:])] = int(child)
    except OSError:
        pass
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_frozen_node_0_ends_the_other_node(nodes):
    started = nodes(2, timeout=4)
    frozen = next(process for process, own in started.items() if 0 in own)
    (other,) = (process for process in started if process is not frozen)
    for pid in (frozen.pid, started[frozen][0]):
        os.kill(pid, signal.SIGSTOP)
    until(lambda: not alive(started[other][1]), seconds=60)
    said = other.log_path.read_text()
    assert "no progress for 0.1 minutes (run.timeout_minutes)" in said
    assert "rank 0 hangs, or its machine: the store, which it keeps, does not answer" in said


@pytest.mark.parametrize(
    ("own_store", "words"),
    [
        ("0", "rank 0 shows no sign of life since step"),
        # Rank 0 keeps the store itself, and takes it with it.
        ("1", "rank 0 hangs, or its machine: the store, which it keeps, does not answer"),
    ],
)
def test_a_frozen_rank_0_is_named(nodes, own_store, words):
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": own_store}
    (process, own), *_ = nodes(1, timeout=4, nproc=2, **environment).items()
    os.kill(own[0], signal.SIGSTOP)
    until(lambda: not alive(own[1]), seconds=60)
    said = process.log_path.read_text()
    assert words in said
    os.kill(own[0], signal.SIGKILL)
    # torchrun's report, the last thing on the console, says so too.
    until(lambda: process.poll() is not None, seconds=60)
    assert words in process.log_path.read_text().rpartition(" FAILED\n")[2]


@pytest.mark.parametrize("nproc", [1, 2])
def test_ranks_do_not_outlive_their_torchrun(nodes, nproc):
    (process, own), *_ = nodes(1, timeout=10, nproc=nproc).items()
    process.kill()
    until(lambda: not any(map(alive, own.values())), seconds=60)
    assert "which started this process, has died" in process.log_path.read_text()
