"""The job script on a real Slurm: preempted twice, its torchrun killed, it does each step once."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from kappaface_dist.training.metrics_file import read_metrics
from tests.commands import ROOT
from tests.integration.slurm_cluster import Cluster, missing


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.timeout(600)
def test_a_job_preempted_twice_finishes_with_the_right_number_of_steps(write_config, tmp_path):
    folder, steps = tmp_path / "run", 400
    path = write_config(run={"steps": steps}, checkpoint={"every": 50})
    log = tmp_path / "job.log"

    def last_step():
        return max((line["step"] for line in read_metrics(folder / "metrics.jsonl")), default=0)

    def wait_for(condition, cluster, number, seconds=240):
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            text = log.read_text()[-3000:] if log.exists() else ""
            assert time.monotonic() < deadline, f"{cluster.job(number)}\n{text}"
            time.sleep(0.3)
        return value

    with Cluster(tmp_path / "slurm") as cluster:
        cluster.environment |= {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "NPROC_PER_NODE": "2",
            "RUN_FOLDER": str(folder),
        }
        submitted = cluster.command(
            "sbatch", f"--chdir={ROOT}", f"--output={log}", ROOT / "launch/slurm/train.sbatch", path
        )
        number = re.search(r"\d+", submitted)[0]

        def restarts():
            return int(cluster.job(number)["Restarts"])

        # First by a job of a partition that comes first, then by the warning of the time limit.
        wait_for(lambda: last_step() > 5, cluster, number)
        cluster.command("sbatch", "--partition=high", "--output=/dev/null", "--wrap", "sleep 1")
        wait_for(lambda: restarts() == 1, cluster, number)
        first = json.loads((folder / "stopped.json").read_text())["step"]
        wait_for(lambda: last_step() > first + 5, cluster, number)
        cluster.command("scancel", "--batch", "--signal=USR1", number)
        wait_for(lambda: restarts() == 2, cluster, number)
        second = json.loads((folder / "stopped.json").read_text())["step"]
        # torchrun itself dies, once there is something to go on from.
        wait_for(lambda: last_step() > second + 60, cluster, number)
        os.kill(torchrun_of(number), signal.SIGKILL)
        wait_for(lambda: "number 2 goes on from" in log.read_text(), cluster, number)
        wait_for(lambda: cluster.job(number)["JobState"] == "COMPLETED", cluster, number)

    assert 5 < first < second < steps
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["images_seen"]) == (steps, steps * 24)
    lines = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert lines == list(range(1, steps + 1))
    assert log.read_text().count("requeueing") == 2
    assert log.read_text().count("goes on from") == 1
    assert not (folder / "stopped.json").exists()


def torchrun_of(number):
    """The process of a job's torchrun."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            job = f"SLURM_JOB_ID={number}".encode() in (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if job and words[1:3] == [b"-m", b"torch.distributed.run"]:
            return int(place.name)
    raise AssertionError("no torchrun runs")
