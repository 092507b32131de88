"""The command `kappaface`: what it lists and what it runs."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from kappaface_dist.console import (
    completion,
    main,
    overview,
    programs,
    shipped_path,
    torchrun_command,
)
from tests.commands import ENVIRONMENT, ROOT


def say(monkeypatch, capsys, *words):
    """(exit code or None, standard output) of `kappaface words`, in this process."""
    monkeypatch.setattr(sys, "argv", ["kappaface", *words])
    try:
        main()
        code = None
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().out


def test_every_program_is_listed_with_its_first_line():
    listed = overview()
    files = [path.stem for path in (ROOT / "tools").glob("*.py")]
    assert set(programs()) == {"train", *(name.replace("_", "-") for name in files)}
    assert "  make-record " in listed
    assert "one folder per identity, as OUT/train.rec" in listed
    assert all(len(line) < 130 and not line.endswith("  ") for line in listed.splitlines())


def test_a_program_is_run_under_its_new_name(monkeypatch, capsys):
    code, help_text = say(monkeypatch, capsys, "make-pairs", "--help")
    assert not code
    assert help_text.startswith("usage: kappaface make-pairs ")


def test_names_with_underscores_and_endings_are_known(monkeypatch, capsys):
    for name in ("make_pairs", "make_pairs.py"):
        code, help_text = say(monkeypatch, capsys, name, "--help")
        assert not code
        assert "usage" in help_text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["traim"], "there is no command 'traim': did you mean train?"),
        (["zzz"], "there is no command 'zzz': kappaface lists them"),
        (["completion", "fish"], "completion is for bash or zsh, not for 'fish'"),
        (["path"], "kappaface path takes one argument"),
        (["path", "docker/Dockerfile"], "is not in configs, launch, tools"),
        (["path", "configs/none.yaml"], "does not exist: kappaface path configs"),
        (["path", ""], "'' is not in configs"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(words, sentence, monkeypatch, capsys):
    code, printed = say(monkeypatch, capsys, *words)
    assert str(code).startswith("error: ")
    assert sentence in code
    assert "\n" not in code
    assert not printed


def test_files_are_found():
    assert shipped_path("launch/slurm/train.sbatch") == ROOT / "launch/slurm/train.sbatch"
    assert shipped_path("configs") == ROOT / "configs"


def test_bash_completes_the_names():
    asked = 'COMP_WORDS=(kappaface make-p); COMP_CWORD=1; _kappaface; echo "${COMPREPLY[@]}"'
    script = f"{completion('bash')}\n{asked}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["make-pairs"]
    later = script.replace("COMP_CWORD=1", "COMP_CWORD=2")  # files, which bash itself completes
    done = subprocess.run(["bash", "-c", later], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_training_takes_every_gpu_of_the_machine(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    started = torchrun_command(["c.yaml", "run.seed=1"], num_gpus=8)
    assert started[2:6] == ["kappaface_dist", "torchrun", "--standalone", "--nproc_per_node=8"]
    assert started[6:] == [str(ROOT / "launch/train.py"), "c.yaml", "run.seed=1"]
    assert find_spec(started[2])
    assert not torchrun_command(["c.yaml"], num_gpus=1)
    assert not torchrun_command(["c.yaml"], num_gpus=0)
    assert not torchrun_command(["c.yaml", "--print-config"], num_gpus=8)
    monkeypatch.setenv("RANK", "3")  # torchrun has started this process
    assert not torchrun_command(["c.yaml"], num_gpus=8)


def start_ranks(tmp_path, body):
    """`kappaface torchrun` of two processes that run body as our programs do, without torch."""
    script = tmp_path / "program.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "from kappaface_dist.commands import run, tell_torchrun\n"
        "def main():\n"
        f"    pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).touch()\n"
        f"    {body}\n"
        "run(main)\n"
    )
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "kappaface_dist", "torchrun", "--standalone"),
            *("--nproc_per_node=2", str(script)),
        ],
        cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "code", "last"),
    {
        "a sentence": ("raise ValueError('the file is none: name another')", 1,
                       "error: the file is none: name another"),
        "a code of ours": ("tell_torchrun('rank 1 hangs'); sys.exit(70)", 70, "rank 1 hangs"),
        "killed": pytest.param(
            "os.kill(os.getpid(), 9)", 137, "ended with signal 9, its lines above may say why",
            marks=pytest.mark.long,
        ),
    }.values(),
)  # fmt: skip
def test_the_last_word_under_torchrun_is_ours(tmp_path, body, code, last):
    done = start_ranks(tmp_path, body)
    said = done.communicate(timeout=100)[1]
    assert done.returncode == code, said
    assert said.rstrip().splitlines()[-1].endswith(last), said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("number", "code", "last"),
    [
        (signal.SIGINT, 130, "stopped by Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, "stopped by SIGTERM", marks=pytest.mark.long),
    ],
)
def test_a_signal_under_torchrun_is_one_line(tmp_path, number, code, last):
    started = start_ranks(tmp_path, "time.sleep(60)")
    while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
        assert started.poll() is None, started.stderr.read()
        time.sleep(0.05)
    os.killpg(started.pid, number)  # as a terminal does
    said = started.communicate(timeout=100)[1]
    assert started.returncode == code, said
    assert said.rstrip().splitlines()[-1] == last
    assert "Traceback" not in said
