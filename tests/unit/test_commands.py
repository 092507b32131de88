"""What the command-line programs share."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from kappaface_dist import commands
from tests.commands import ENVIRONMENT, ROOT


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
