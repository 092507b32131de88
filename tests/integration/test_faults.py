"""Faults, for real: killed processes, full and read-only disks, damaged files, hangs.

FAULT_KILLS=50 pytest tests/integration/test_faults.py -k killed   runs the long form.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from kappaface_dist.checkpoint.folder import complete_checkpoints
from tests.commands import ENVIRONMENT, ROOT, python, torchrun
from tests.integration.faults import assert_same_end, kill, last_step, start, wait_for, workers
from tests.integration.test_training import fit
from tests.processes import run_on_ranks

NUM_KILLS = int(os.environ.get("FAULT_KILLS", "2"))


def mount(folder, *options):
    folder.mkdir(exist_ok=True)
    command = ["mount", *options, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs root and mount: {done.stderr.strip()}")


def unmount(folder):
    subprocess.run(["umount", str(folder)], check=False)


@pytest.mark.timeout(3000)
def test_a_run_killed_at_random_moments_ends_as_if_nothing_had_happened(write_config, tmp_path):
    """A rank dies of SIGKILL again and again, every second time in the middle of a save."""
    steps = 40 + 8 * NUM_KILLS
    path = write_config(run={"steps": steps}, checkpoint={"every": 4}, head={"sample_rate": 0.5})
    run_on_ranks(2, fit, path, f"run.folder={tmp_path}/whole")
    folder = tmp_path / "run"
    chance = random.Random(7)
    during_saves = lost = 0
    process = start(2, path, restarts=3 * NUM_KILLS)
    for number in range(NUM_KILLS):
        before, lives = last_step(folder), workers(process)
        rank = chance.randrange(2)
        wait_for(lambda: workers(process).keys() == {0, 1}, process)
        wait_for(lambda seen=before: last_step(folder) > seen + 4, process)
        if number % 2 == 0:
            wait_for(lambda: list(folder.glob("checkpoints/*.part")), process)
            during_saves += 1
        else:
            time.sleep(chance.random())
        lives = workers(process)
        reached = last_step(folder)
        kill(process, rank)
        kept = complete_checkpoints(folder / "checkpoints")
        lost = max(lost, reached - (int(kept[-1].name[5:]) if kept else 0))
        wait_for(lambda old=lives: set(workers(process).values()).isdisjoint(old.values()), process)
    assert process.wait(timeout=240) == 0, process.log_path.read_text()[-3000:]
    log = process.log_path.read_text()
    assert log.count("going on from") >= NUM_KILLS - 1
    assert_same_end(folder, tmp_path / "whole")
    # The save under way when the rank died, and the steps since the one before it.
    assert lost <= 4 + 4 + 2
    print(f"{NUM_KILLS} kills, {during_saves} during a save; at most {lost} steps done again")


def test_sigusr1_saves_and_ends_with_the_code_that_requeues(write_config, tmp_path):
    path = write_config(run={"steps": 4000}, checkpoint={"every": None})
    process = subprocess.Popen(
        [sys.executable, "launch/train.py", path],
        cwd=ROOT,
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    process.log_path = path
    folder = tmp_path / "run"
    wait_for(lambda: last_step(folder) >= 3, process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 75
    step = json.loads((folder / "stopped.json").read_text())["step"]
    assert complete_checkpoints(folder / "checkpoints")[-1].name == f"step_{step:08d}"
    done = python("launch/train.py", path, f"run.steps={step + 2}", "run.stop_exit_code=3")
    assert done.returncode == 0, done.stderr
    assert not (folder / "stopped.json").exists()


def test_a_damaged_shard_makes_the_run_go_on_from_the_checkpoint_before(write_config, tmp_path):
    path = write_config(run={"steps": 30})
    whole, parts = f"run.folder={tmp_path}/whole", f"run.folder={tmp_path}/run"
    run_on_ranks(2, fit, path, whole)
    run_on_ranks(2, fit, path, parts, "run.steps=20", "optimizer.schedule=polynomial")
    root = tmp_path / "run" / "checkpoints"
    info = python("tools/checkpoint_info.py", tmp_path / "run", "--json", "-")
    assert info.returncode == 0, info.stderr
    report = json.loads(info.stdout)
    assert report["tensors"]["head.weight"] == {
        "shape": [30, 32],
        "dtype": "float32",
        "bytes": 30 * 32 * 4,
    }
    assert report["numbers"]["run"]["step"] == 20
    last = root / "step_00000020"
    for folder in (last, root / "step_00000010"):
        shard = folder / "__1_0.distcp"
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 255
        shard.write_bytes(content)
        if folder == last:
            info = python("tools/checkpoint_info.py", tmp_path / "run")
            assert info.returncode == 1
            assert "__1_0.distcp does not have its checksum" in info.stderr
            step, *_ = run_on_ranks(2, fit, path, parts, "run.steps=11")[0]
            assert step == 11
            assert (root / "step_00000020.damaged").is_dir()
            last = root / "step_00000011"
    content = (last / "__0_0.distcp").read_bytes()
    (last / "__0_0.distcp").write_bytes(content[:-1])
    with pytest.raises(AssertionError, match=r"is damaged .*there is none before it: restore it"):
        run_on_ranks(2, fit, path, parts)


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(write_config, tmp_path):
    path = write_config(run={"steps": 24}, checkpoint={"every": 6, "keep": 100})
    run_on_ranks(2, fit, path, f"run.folder={tmp_path}/whole")
    disk = tmp_path / "run"
    mount(disk, "-t", "tmpfs", "-o", "size=9m", "tmpfs")
    try:
        first = torchrun(2, "launch/train.py", path)
        assert first.returncode != 0
        assert "make room, or lower checkpoint.keep" in first.stderr
        # A rank says it in a line; torchrun may end the other before it has said so, too. The
        # report after them is torchrun's own.
        lines = first.stderr.splitlines()
        assert sum(line.startswith("error: a checkpoint of") for line in lines) in (1, 2)
        assert complete_checkpoints(disk / "checkpoints")
        subprocess.run(["mount", "-o", "remount,size=90m", str(disk)], check=True)
        second = torchrun(2, "launch/train.py", path)
        assert second.returncode == 0, second.stderr
        assert "going on from" in second.stderr
        assert_same_end(disk, tmp_path / "whole")
    finally:
        unmount(disk)


def test_a_read_only_run_folder_is_one_clear_error(write_config, tmp_path):
    path = write_config()
    folder = tmp_path / "run"
    mount(folder, "-t", "tmpfs", "-o", "ro,size=9m", "tmpfs")
    try:
        done = python("launch/train.py", path)
    finally:
        unmount(folder)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Read-only file system" in done.stderr
    assert str(folder) in done.stderr


def test_a_rank_that_stops_is_named_within_the_set_time(write_config, tmp_path):
    path = write_config(run={"steps": 100_000, "timeout_minutes": 0.15})
    process = start(2, path, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1")
    wait_for(lambda: last_step(tmp_path / "run") >= 3, process)
    os.kill(workers(process)[1], signal.SIGSTOP)
    words = "rank 1 shows no sign of life since step"
    wait_for(lambda: words in process.log_path.read_text(), process, seconds=60)
    # torchrun does not manage to end a stopped process, but by SIGKILL half a minute later.
    kill(process, 1)
    assert process.wait(timeout=60) != 0


SCRIPT = """
import sys, time, torch.distributed as dist
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.parallel.watchdog import Watchdog
from kappaface_dist.training.run_log import start_logging
parallel.start()
start_logging(None)
with Watchdog(3.0 if parallel.rank() == int(sys.argv[1]) else 30.0) as watchdog:
    for step in range(4):
        watchdog.tick(step, "waiting for data")
        if parallel.rank() == 1 and step == 3:
            time.sleep(60)  # as a dead network disk does
        watchdog.tick(step, "training")
        parallel.barrier()
"""


@pytest.mark.parametrize("speaker", [0, 1])
def test_a_rank_that_waits_for_its_data_is_named(tmp_path, speaker):
    """Whoever notices first: torchrun may end the others before they speak."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = torchrun(2, tmp_path / "script.py", speaker)
    assert done.returncode != 0
    assert "rank 1 hangs at step 3 (waiting for data), or rank 0 (training)" in done.stderr
