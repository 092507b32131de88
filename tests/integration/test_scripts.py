"""Job and container scripts, as far as they can be looked at without their machines."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kappaface_dist.config.file import load_config
from tests.commands import ROOT

SCRIPTS = [ROOT / "launch/slurm/train.sbatch", *sorted((ROOT / "docker").glob("*.sh"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_well_formed(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_scripts_name_configurations_that_exist():
    texts = [path.read_text() for path in (*SCRIPTS, ROOT / "docker/trainjob.yaml")]
    words = {word.strip("[],{}\"'") for text in texts for word in text.replace(",", " ").split()}
    named = {
        word.split(":-")[-1] for word in words if "configs/" in word and word.endswith(".yaml")
    }
    assert len(named) >= 2
    for name in named - {"configs/x.yaml"}:
        assert (ROOT / name).is_file(), name


def test_the_job_description_asks_for_what_a_run_needs():
    runtime, job = yaml.safe_load_all((ROOT / "docker/trainjob.yaml").read_text())
    assert job["spec"]["runtimeRef"]["kind"] == runtime["kind"]
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert not pod["containers"][0]["image"].endswith(("latest", "kappaface_dist"))
    environment = {entry["name"]: entry.get("value") for entry in job["spec"]["trainer"]["env"]}
    # Kubernetes must not kill the pod before torchrun has given up on its processes.
    timeout = int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert timeout < pod["terminationGracePeriodSeconds"]
    assert environment["WANDB_API_KEY"] is None  # from a secret


def test_constraints_leave_alone_what_the_base_image_brings():
    done = subprocess.run(
        [sys.executable, ROOT / "docker/free_constraints.py"],
        input="torch==1.0 \\\n    --hash=sha256:0\n# a comment\nPyTest_TimeOut==0.1\n"
        "nvidia-cusparselt-cu13==1 \\\n    --hash=sha256:0\ncuda-bindings==1\n"
        "no-such-package==3 ; python_version < '4' \\\n    --hash=sha256:1\n",
        capture_output=True,
        text=True,
        check=True,
    )
    lines = "no-such-package==3 ; python_version < '4' \\\n    --hash=sha256:1\n"
    assert done.stdout == "# a comment\n" + lines


def test_the_locked_packages_are_those_of_the_constraints_and_each_has_a_hash():
    def pins(text):
        found = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\\n]+)", text, re.MULTILINE)
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}

    text = (ROOT / "docker/requirements.lock").read_text()
    locked, constrained = pins(text), pins((ROOT / "constraints.txt").read_text())
    assert {"torch", "numpy", "wandb", "setuptools"} <= locked.keys()
    # torch for GPUs brings its own triton.
    shared = (locked.keys() & constrained.keys()) - {"triton"}
    assert {name: locked[name] for name in shared} == {name: constrained[name] for name in shared}
    for entry in re.split(r"\n(?=\S)", text.strip()):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]


def test_an_array_task_reaches_the_overrides():
    text = (ROOT / "launch/slurm/train.sbatch").read_text()
    lines = text[text.index("overrides=()") : text.index("# After a warning")]
    done = subprocess.run(
        ["bash", "-c", lines + 'echo "${overrides[*]}"', "x", "run.seed=$SLURM_ARRAY_TASK_ID", "b"],
        env={"SLURM_ARRAY_TASK_ID": "7", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "run.seed=7 b\n"


@pytest.mark.parametrize("folder", ["runs/exp #2", "[a]", "'x", "{a: b}", "/runs/ b", "0123"])
def test_the_folder_of_a_job_is_taken_as_it_is(tmp_path, folder):
    text = (ROOT / "launch/slurm/train.sbatch").read_text()
    lines = text[text.index("folder=${RUN_FOLDER") : text.index("config=$1")]
    done = subprocess.run(
        ["bash", "-c", lines + 'printf %s "run.folder=$folder"'],
        env={"RUN_FOLDER": folder, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / "config.yaml").write_text("run: {steps: 3}\ndata: {train: x.rec}\n")
    found = load_config(tmp_path / "config.yaml", [done.stdout]).folder
    assert found == Path(folder)


def test_overrides_of_a_cloud_machine_are_arguments_and_nothing_else(tmp_path):
    text = (ROOT / "docker/cloud_startup.sh").read_text()
    start = tmp_path / "start"
    lines = text[text.index("IMAGE=${IMAGE") : text.index("mkdir -p")]
    lines += text[text.index("start=(") : text.index("cat > /etc/systemd")]
    lines = lines.replace("/usr/local/bin/kappaface-start", str(start))
    overrides = f"run.name=a b\ndata.train=$(touch {tmp_path}/mark)\n\nx='%h; reboot"
    environment = {"OVERRIDES": overrides, "IMAGE": "k@sha256:0", "PATH": "/usr/bin:/bin"}
    subprocess.run(["bash", "-euc", lines], env=environment, check=True)
    shown = start.read_text().replace("exec /usr/bin/docker", "printf '%s\\n'")
    done = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True)
    assert (
        done.stdout.split("run.folder=/runs/cloud\n")[1] == overrides.replace("\n\n", "\n") + "\n"
    )
    assert not (tmp_path / "mark").exists()
    done = subprocess.run(
        ["bash", "-euc", lines],
        env={**environment, "IMAGE": "k:latest"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "name a version or a digest" in done.stderr) == (1, True)
