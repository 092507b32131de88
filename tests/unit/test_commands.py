"""What the command-line programs share."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from kappaface_dist import commands
from tests.commands import ENVIRONMENT, ROOT
from tests.processes import run_on_ranks


def test_a_report_goes_where_it_is_asked_for(tmp_path, capsys):
    report = {"images": 3}
    commands.write_json(None, report)
    commands.write_json("-", report)
    assert json.loads(capsys.readouterr().out) == report
    commands.write_json(str(tmp_path / "new" / "report.json"), report)
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == report


def test_a_mistake_is_one_line_and_a_fault_of_ours_is_not():
    def fail(error):
        raise error

    with pytest.raises(SystemExit) as stopped:
        commands.run(lambda: fail(ValueError("no such file")))
    assert stopped.value.code == "error: no such file"
    with pytest.raises(AssertionError):
        commands.run(lambda: fail(AssertionError()))


def test_why_a_process_ended_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """torchrun ends the other ranks while they write theirs, and cannot read half of one."""
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    reason = "x" * 2_000_000
    for number in range(12):
        child = os.fork()
        if child == 0:
            while True:
                commands.tell_torchrun(reason)
        time.sleep(0.03 + 0.004 * number)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if path.exists():
            assert json.loads(path.read_text())["message"]["message"] == reason
            path.unlink()


def test_the_progress_bar_waits_for_the_first_image(capsys, monkeypatch):
    silent = commands.image_progress()
    silent(3, 7)
    silent(7, 7)
    assert capsys.readouterr().err == ""  # no terminal
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = commands.image_progress()
    assert capsys.readouterr().err == ""
    progress(3, 7)
    progress(7, 7)
    assert "7/7" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_a_tool_with_one_line(tmp_path, processes):
    """Sent to the whole group, as a terminal does, while the tool's processes work."""
    command = [sys.executable, "tools/make_faces.py", str(tmp_path / "faces")]
    command += ["--identities=3000", f"--processes={processes}", "--image-size=32"]
    tool = subprocess.Popen(
        command,
        cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell starts what runs in its background deaf to it, and the tests may run there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not (tmp_path / "faces").is_dir():
        assert tool.poll() is None, tool.stderr.read()
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(tool.pid, signal.SIGINT)
    said = tool.communicate(timeout=100)[1]
    assert tool.returncode == 130
    assert "Traceback" not in said
    assert said.rstrip().endswith("stopped by Ctrl-C")


def test_a_peer_that_is_gone_is_said_in_our_words():
    """The error of a real group of which one rank has ended."""
    found = run_on_ranks(2, _meet_nobody)[0]
    words = "error: another rank has ended or is out of reach (Connection closed by peer ["
    assert found.startswith(words) or found.startswith(words.replace("closed", "reset"))
    assert "typically" not in found
    assert "\n" not in found


def _meet_nobody():
    """On rank 0 what a command says when the other rank is gone."""
    flag = torch.zeros(1)
    dist.all_reduce(flag)
    group = dist.new_group(backend="gloo")
    if dist.get_rank() == 1:
        dist.destroy_process_group(group)
        return None
    time.sleep(0.5)
    with pytest.raises(SystemExit) as stopped:
        commands.run(lambda: dist.all_reduce(flag, group=group))
    return stopped.value.code


def test_torchrun_ends_with_our_sentence(tmp_path, monkeypatch):
    """What torch itself makes of the file that a process leaves for it."""
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))

    def told(error):
        def fail():
            raise error

        with pytest.raises((SystemExit, AssertionError)):
            commands.run(fail)
        failure = ProcessFailure(local_rank=1, pid=7, exitcode=1, error_file=str(path))
        return str(ChildFailedError("launch/train.py", {1: failure})).rstrip(" =\n")

    report = told(ValueError("there is no dataset at x.rec: give another"))
    assert report.endswith("traceback : error: there is no dataset at x.rec: give another")
    # A mistake of ours keeps its traceback.
    assert told(AssertionError("ours")).endswith("AssertionError: ours")
    assert "in fail" in path.read_text()
    # A disk that is full, or torchrun's folder that is gone, does not hide the error itself.
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "error.json"))
    with pytest.raises(SystemExit, match="error: plain"):
        commands.run(lambda: (_ for _ in ()).throw(ValueError("plain")))


def test_workers_end_with_the_program_that_was_killed(tmp_path):
    """Else those of a killed program compute on for minutes, and then wait for ever."""
    program = subprocess.Popen(
        [sys.executable, ROOT / "tools/make_faces.py", tmp_path / "faces", "--processes", "2"],
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    try:
        workers = wait_for(lambda: workers_of(program.pid), "workers")
    finally:
        program.kill()
        program.wait()
    wait_for(lambda: not any(map(is_alive, workers)), f"the end of {workers}")


def wait_for(look, what):
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def workers_of(pid):
    """Its children that multiprocessing started, once they are at work in numbers."""
    tasks = (Path("/proc") / str(pid) / "task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    forks = [
        c for c in children if b"spawn_main" in (Path("/proc") / str(c) / "cmdline").read_bytes()
    ]
    return forks if len(forks) == 2 else []


def is_alive(pid):
    try:
        return "\nState:\tZ" not in (Path("/proc") / str(pid) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
