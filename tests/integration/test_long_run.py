"""Nothing grows: memory, descriptors and threads of a run of many steps, saves and evaluations.

SOAK_STEPS=20000 pytest -s tests/integration/test_long_run.py   runs it (make test-long).
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.commands import ENVIRONMENT, ROOT
from tests.integration.faults import last_step

STEPS = int(os.environ.get("SOAK_STEPS", "0"))
GROWTH = 8e6  # bytes between the medians: of fragments of memory, not of what a step leaves


def measured(process):
    """(resident bytes, open files, threads) of a process."""
    place = Path(f"/proc/{process.pid}")
    status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    files = len(list((place / "fd").iterdir()))
    return int(status["VmRSS"].split()[0]) * 1024, files, int(status["Threads"])


@pytest.mark.skipif(not STEPS, reason="SOAK_STEPS=20000 runs it (make test-long)")
@pytest.mark.timeout(3600)
def test_memory_files_and_threads_stay_flat(write_config, faces, tmp_path):
    path = write_config(
        run={"steps": STEPS},
        data={"batch_size": 4},
        checkpoint={"every": 200},
        evaluate={"sets": {"unseen": str(faces / "unseen.bin")}, "every": 500},
        log={"every": 20, "tensorboard": True},
    )
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "launch/train.py", path],
            cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log,
        )  # fmt: skip
    found = []
    while process.poll() is None:
        try:
            found.append((last_step(tmp_path / "run"), *measured(process)))
        except (OSError, KeyError):
            break  # it has just ended
        time.sleep(max(0.2, STEPS / 50_000))
    assert process.wait() == 0, (tmp_path / "log").read_text()[-3000:]
    step_N, *rows = np.array(found).T
    parts = [(step_N >= STEPS * a) & (step_N < STEPS * b) for a, b in ((0.2, 0.4), (0.78, 0.98))]
    assert min(part.sum() for part in parts) >= 5
    early, late = ([np.median(row[part]) for row in rows] for part in parts)
    most = [row[step_N > STEPS * 0.05].max() for row in rows]
    print(f"{STEPS} steps, {len(found)} samples: bytes, files, threads")
    print(f"from 20 to 40 %: {early}; from 78 to 98 %: {late}; most: {most}")
    assert late[0] - early[0] < GROWTH
    assert late[1:] == early[1:]
