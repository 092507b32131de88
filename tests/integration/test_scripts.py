"""Job and container scripts, as far as they can be looked at without their machines."""

import subprocess
import sys

import pytest
import yaml

from tests.commands import ROOT

SCRIPTS = [ROOT / "launch/slurm/train.sbatch", *sorted((ROOT / "docker").glob("*.sh"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_well_formed(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_scripts_name_configurations_that_exist():
    texts = [path.read_text() for path in (*SCRIPTS, ROOT / "docker/pytorchjob.yaml")]
    words = {word.strip("[],{}\"'") for text in texts for word in text.replace(",", " ").split()}
    named = {
        word.split(":-")[-1] for word in words if "configs/" in word and word.endswith(".yaml")
    }
    assert len(named) >= 2
    for name in named - {"configs/x.yaml"}:
        assert (ROOT / name).is_file(), name


def test_the_job_description_asks_for_what_a_run_needs():
    job = yaml.safe_load((ROOT / "docker/pytorchjob.yaml").read_text())
    pod = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    # Kubernetes must not kill the pod before torchrun has given up on its processes.
    timeout = int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert timeout < pod["terminationGracePeriodSeconds"]
    assert environment["WANDB_API_KEY"] is None  # from a secret


def test_constraints_leave_alone_what_the_base_image_brings():
    done = subprocess.run(
        [sys.executable, ROOT / "docker/free_constraints.py"],
        input="torch==1.0\n# a comment\nPyTest_TimeOut==0.1\nno-such-package==3\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "# a comment\nno-such-package==3\n"


def test_an_array_task_reaches_the_overrides():
    text = (ROOT / "launch/slurm/train.sbatch").read_text()
    lines = text[text.index("overrides=()") : text.index("first_node=")]
    done = subprocess.run(
        ["bash", "-c", lines + 'echo "${overrides[*]}"', "x", "run.seed=$SLURM_ARRAY_TASK_ID", "b"],
        env={"SLURM_ARRAY_TASK_ID": "7", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "run.seed=7 b\n"
