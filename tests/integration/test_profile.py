"""profile.steps writes a trace and a page about those steps, and changes nothing else."""

import gzip
import json
import re

import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import build_job
from kappaface_dist.training.step import PHASES
from kappaface_dist.training.trainer import Trainer
from tests.processes import run_on_ranks


def run(path, *overrides):
    config = load_config(path, list(overrides))
    if parallel.rank() == 0:
        config.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(build_job(config, torch.device("cpu")))
    trainer.fit()
    return trainer.job.network.state_dict(), config.folder / "profile"


def test_some_steps_are_profiled(write_config, tmp_path):
    path = write_config(run={"steps": 6}, checkpoint={"every": None})
    expected, nothing = run(path, f"run.folder={tmp_path}/plain")
    assert not nothing.exists()
    found, folder = run(path, f"run.folder={tmp_path}/profiled", "profile.steps=[2,4]")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with gzip.open(folder / "trace.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("training_step") == 2
    page = (folder / "summary.txt").read_text()
    assert page.startswith("2 steps of ")
    for name in ("data_wait", *PHASES):
        assert re.search(rf"{name} +\d+\.\d+ ms +\d+\.\d%", page), name
    # A step on the CPU looks at its loss once, and where its labels' rows begin and end.
    assert float(re.search(r"aten::_local_scalar_dense +(\d+\.\d)", page)[1]) >= 1
    assert "aten::mkldnn_convolution" in page or "aten::convolution" in page
    assert len(page.splitlines()) < 60


def test_a_run_that_ends_earlier_writes_what_it_has(write_config, tmp_path):
    path = write_config(run={"steps": 4}, checkpoint={"every": None})
    _, folder = run(path, f"run.folder={tmp_path}/run", "profile.steps=[3,100]")
    assert (folder / "summary.txt").read_text().startswith("1 steps of ")


def test_the_exchange_of_two_ranks_is_a_part_and_no_operator(write_config, tmp_path):
    path = write_config(run={"steps": 3}, checkpoint={"every": None})

    def profiled():
        run(path, "profile.steps=[1,3]")

    run_on_ranks(2, profiled)
    page = (tmp_path / "run" / "profile" / "summary.txt").read_text()
    parts, operators = page.split("host waits for the device")
    found = re.findall(r"^  (\w+) +(\d+\.\d+) ms", parts, re.MULTILINE)
    assert [name for name, _ in found] == ["data_wait", *PHASES]
    assert not re.search(rf"^  ({'|'.join(PHASES)}) ", operators, re.MULTILINE)
