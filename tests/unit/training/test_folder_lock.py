"""One run, one folder: two real processes, owners that are dead, elsewhere, or overtaken."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from kappaface_dist.training.folder_lock import FILE, FolderLock
from tests.commands import ENVIRONMENT, ROOT

OWNER = """
import sys, time
from pathlib import Path
from kappaface_dist.training.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1]), beat=0.1):
    print("taken", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    """Another process, which has taken the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "taken\n", process.stderr.read()
    yield process
    process.kill()
    process.communicate()


def change(folder, **values):
    """Another owner, in the same file."""
    content = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**content, **values}))


def test_the_second_is_refused_while_the_first_lives_and_not_after(owner, tmp_path, caplog):
    with pytest.raises(RuntimeError, match=f"another run is using .*: process {owner.pid} of"):
        FolderLock(tmp_path, patience=0.5)
    owner.kill()
    owner.wait()
    with FolderLock(tmp_path):
        assert f"process {owner.pid}" in caplog.text
        assert "is gone: the folder is taken over" in caplog.text
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_an_owner_that_is_about_to_end_is_waited_for(owner, tmp_path):
    """As a rank whose torchrun was killed, when the command is given again at once."""
    ends = threading.Timer(1.0, owner.kill)
    ends.start()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    ends.join()


def test_a_process_of_the_same_number_is_not_the_owner(tmp_path):
    with FolderLock(tmp_path):
        change(tmp_path, start="1", token="of somebody else")
        with FolderLock(tmp_path):
            assert json.loads((tmp_path / FILE).read_text())["start"] != "1"


def test_an_owner_elsewhere_is_waited_for(owner, tmp_path):
    """What another machine sees: no process, only a file that is touched or is not."""
    change(tmp_path, kernel="another machine's")
    with pytest.raises(RuntimeError, match="another run is using"):
        FolderLock(tmp_path, patience=30)
    owner.kill()
    owner.wait()
    with FolderLock(tmp_path, patience=0.5):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", ["", "[1]", '{"pid": 3', '{"pid": "x", "start": 1}'])
def test_a_damaged_lock_is_nobodys(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with FolderLock(tmp_path, patience=0.3):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("how", ["taken over", "deleted"])
def test_an_owner_that_was_overtaken_ends(owner, tmp_path, how):
    if how == "deleted":
        (tmp_path / FILE).unlink()
    else:
        change(tmp_path, token="of somebody else")
    _, said = owner.communicate(timeout=30)
    assert owner.returncode == 70
    assert how in said


def test_of_many_starts_at_once_one_gets_the_folder_of_a_dead_run(owner, tmp_path):
    owner.kill()
    owner.wait()
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path)],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(3)
    ]
    deadline = time.monotonic() + 60
    while sum(start.poll() is None for start in starts) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    alive = [start for start in starts if start.poll() is None]
    assert [start.pid for start in alive] == [json.loads((tmp_path / FILE).read_text())["pid"]]
    alive[0].kill()
    alive[0].wait()


def test_a_restart_does_not_begin_anew_in_a_folder_that_is_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(RuntimeError, match="is gone, and this run was started again"):
        FolderLock(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
