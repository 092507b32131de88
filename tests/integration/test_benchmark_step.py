"""tools/benchmark_step.py as a user runs it, and a plan with the rates that it measures."""

import json
import runpy
from unittest import mock

import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.planning.calibration import MANY_ROWS, calibrated, measured_rates
from kappaface_dist.planning.memory import JobSize
from kappaface_dist.planning.plan import make_plan, network_cost
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.planning.step_benchmark import Side, variants
from kappaface_dist.planning.step_time import DEVICES
from tests.commands import exit_line, python
from tests.processes import run_on_ranks

CPU = torch.device("cpu")
PARTS = {"backbone_forward", "head_forward", "backward", "head_step", "exchange", "optimizer"}


@pytest.mark.long
def test_the_table_and_a_plan_with_its_rates(write_config, tmp_path):
    path, target = write_config(), tmp_path / "report.json"
    done = python(
        "tools/benchmark_step.py", path, "data.batch_size=8", "--ranks", 2, "--classes", 300,
        "--steps", 3, "--no-compile", "--only", "channels_last", "late_exchange",
        "--plan-for", 6000, "--json", target,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(target.read_text())
    assert (report["ranks"], report["batch"], report["classes"]) == (2, 16, 300)
    assert list(report["variants"]) == ["plain", "channels_last", "late_exchange", "config"]
    plain = report["variants"]["plain"]["seconds"]
    flops = network_cost(load_config(path)).training_flops
    for name, found in report["variants"].items():
        assert name in done.stdout
        assert found["seconds_min"] <= found["seconds"]
        assert found["images_per_second"] == pytest.approx(16 / found["seconds"])
        assert found["speedup"] == pytest.approx(plain / found["seconds"])
        rate = 8 * flops / found["seconds"]
        assert found["utilisation"] == pytest.approx(rate / report["product_flops_per_second"])
        assert found["part_seconds"].keys() == PARTS
        assert min(found["part_seconds"].values()) > 0
    (beside,) = report["planned"]
    assert beside["classes"] == 6000
    options = ("--gpus", 2, "--gpu", "cpu", "--classes", 6000, "--calibration", target)
    done = python("tools/plan.py", path, "data.batch_size=8", *options, "--json", "-")
    planned = json.loads(done.stdout)["step_seconds"]
    in_all = sum(planned.values()) - planned["data_wait"]
    assert in_all == pytest.approx(beside["planned_seconds"])
    shares = report["shares"]
    assert shares.pop("data") > 0  # beside the step, not a part of it
    assert shares.keys() == {"backbone", "head", "communication", "optimizer"}
    assert sum(shares.values()) == pytest.approx(1.0)

    rates = report["calibration"]
    assert planned["backbone"] == pytest.approx(8 * flops / rates["backbone_flops"])
    parts = report["variants"]["config"]["part_seconds"]
    measured = parts["backbone_forward"] + parts["backward"]
    assert planned["backbone"] == pytest.approx(measured)
    assert planned["optimizer"] == pytest.approx(parts["optimizer"])
    assert planned["head"] > rates["head_fixed_seconds"]
    # Three collectives of the head and one of the gradients.
    assert planned["communication"] > 4 * rates["collective_seconds"] > 0


def test_mistakes_are_one_line(write_config):
    tool, path = "tools/benchmark_step.py", write_config()
    line = exit_line(tool, path, "--only", "bf17", "--ranks", 2)
    assert line.startswith("error: --only names ['bf17'], known are plain, channels_last, ")
    line = exit_line(tool, path, "--ranks", 4, "--classes", 3)
    assert line == "error: --classes or --plan-for is 3 for 4 ranks: each must own one at least"
    assert exit_line(tool, path, "--steps", 0) == "error: --steps is 0: it must be at least 1"
    # What only the processes find out.
    few = ("--only", "plain", "--classes", 90, "--steps", 1)
    done = python(tool, path, "backbone.sync_batchnorm=true", "--ranks", 2, *few)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: backbone.sync_batchnorm is true")
    assert "Traceback" not in done.stderr


def test_some_switches_are_for_some_only(write_config):
    config = load_config(write_config())
    on_cpu, on_gpu = (variants(config, compiled=True, on_gpu=flag) for flag in (False, True))
    assert on_gpu.keys() - on_cpu.keys() == {"sync_batchnorm", "cuda_graphs+channels_last+bf16"}
    assert (on_cpu["plain"].precision, on_gpu["plain"].precision) == ("fp32", "fp16")
    assert on_gpu["sync_batchnorm"].backbone.sync_batchnorm
    accumulated = load_config(write_config(optimizer={"accumulate": 2}))
    assert "static_graph" not in variants(accumulated, compiled=False, on_gpu=False)


@pytest.mark.parametrize("waits_first", [True, False])
def test_when_the_gradients_are_waited_for(write_config, waits_first):
    config = load_config(write_config())

    def buckets_on_their_way():
        side = Side(config, 300, CPU, waits_first)
        head_step, found = side.job.head.step, []

        def step(*args, **kwargs):
            found.append(len(side.job.backbone._exchange.running))
            head_step(*args, **kwargs)

        side.job.head.step = step
        side.step(timed=True)
        return found

    for (number,) in run_on_ranks(2, buckets_on_their_way):
        assert (number == 0) == waits_first


def rates_of(config, num_classes):
    side = Side(config, num_classes, CPU)
    side.step(timed=True)
    with side.without_exchange():
        side.step(timed=False, parts=True)
    return measured_rates(side, network_cost(config))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_plan_for_other_sizes_follows_from_the_rates(write_config, tmp_path, num_ranks):
    """Rates from 300 classes; plans for 40,000, and for half the batch."""
    path = write_config(backbone={"embedding_size": 256}, margin={"name": "arcface"})
    config, half = (load_config(path, [f"data.batch_size={size}"]) for size in (16, 8))
    ranks = num_ranks if num_ranks > 1 else 0
    rates = run_on_ranks(ranks, rates_of, config, 300)[0]
    assert rates.keys() >= {"backbone_flops", "optimizer_bytes", "head_flops", "head_bytes"}
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"calibration": rates}))
    device = calibrated(DEVICES["cpu"], [str(report)], "tiny")
    for job, num_classes in ((config, 300), (config, 40_000), (half, 40_000)):
        with pretend_ranks(num_ranks):
            planned = make_plan(job, JobSize(num_classes, 0, num_ranks), device).step_seconds
        images, rows = job.data.batch_size, num_classes // num_ranks
        flops = images * network_cost(job).training_flops
        assert planned["backbone"] == pytest.approx(flops / rates["backbone_flops"])
        # Logits twice and two gradients; centres three times and momentum twice, in fp32.
        products = 4 * 2 * (images * num_ranks) * rows * 256 / rates["head_flops"]
        traffic = 5 * 4 * rows * 256 / rates["head_bytes"]
        head = products + traffic + rates["head_fixed_seconds"]
        assert planned["head"] == pytest.approx(head)


def test_two_datasets(write_config, tmp_path):
    """--classes once for each; another size in the same proportions, beside its plan."""
    tool = runpy.run_path("tools/benchmark_step.py")
    path, target = write_config(), tmp_path / "report.json"
    two = (
        "data.train={a: {path: x, share: 0.75}, b: {path: x, share: 0.25, margin: {name: arcface}}}"
    )
    small = [two, "data.batch_size=8", "backbone.embedding_size=16", "--no-compile", "--steps=1"]
    sizes = ["--only=plain", "--classes=300", "--classes=100", "--plan-for=2000", "--json", target]
    with mock.patch("sys.argv", list(map(str, ["tool", path, *small, *sizes]))):
        tool["main"]()
    report = json.loads(target.read_text())
    assert (report["classes"], report["batch"]) == (400, 8)
    assert report["planned"][0]["classes"] == 2000
    assert report["planned"][0]["planned_seconds"] > 0
    assert {"head_flops", "head_bytes", "head_fixed_seconds"} <= report["calibration"].keys()
    arguments = mock.Mock(classes=None, plan_for=[], ranks=1)
    of_each = tool["job_sizes"](load_config(path, [two]), arguments)[0].classes_of_each
    assert of_each == [360_000, 360_000]


def test_shards_of_unequal_size_do_not_wait_for_each_other(write_config):
    """One rank has just as many rows as are wanted for a rate, the other one less."""
    config = load_config(write_config(), ["data.batch_size=4", "backbone.embedding_size=16"])
    for rates in run_on_ranks(2, rates_of, config, 2 * MANY_ROWS - 1):
        assert min(rates.values()) >= 0
