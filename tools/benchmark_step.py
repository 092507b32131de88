"""Training steps with each switch alone, and with the configuration's, beside the plain eager step.

python tools/benchmark_step.py configs/quickstart.yaml --ranks 2 --classes 550 --json -
Random images; the plain step is fp32 on a CPU and fp16 on a GPU, as everyone runs it. Under
torchrun the processes are those of torchrun.
"""

import argparse
import dataclasses
import resource
import time
from pathlib import Path
from typing import Any

import torch

from kappaface_dist import commands, options
from kappaface_dist.config.datasets import datasets, paths
from kappaface_dist.config.file import load_config
from kappaface_dist.config.keys import Config
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.planning.calibration import measured_rates
from kappaface_dist.planning.job_size import JobSize, size_given
from kappaface_dist.planning.plan import make_plan, network_cost
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.planning.step_benchmark import (
    LATE_EXCHANGE,
    Side,
    measure,
    part_seconds,
    product_flops,
    summary,
    variants,
)
from kappaface_dist.planning.step_time import DEVICES
from kappaface_dist.training.build import DTYPES
from kappaface_dist.training.fit import open_here
from kappaface_dist.training.loaders import new_loader


def parse_arguments() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    parser.add_argument("config", help="a YAML file of configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options.add_device(parser)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument(
        "--classes",
        type=options.positive,
        action="append",
        help="identities of all ranks, of several datasets once for each (default: 360,000)",
    )
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each variant")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="besides plain and config")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out the variants with torch.compile"
    )
    parser.add_argument(
        "--plan-for",
        nargs="+",
        type=options.positive,
        default=[],
        metavar="CLASSES",
        help="measure the configuration with so many identities too, of several datasets in the"
        " proportions of --classes, and compare with a plan",
    )
    options.add_json(parser)
    return parser.parse_intermixed_args()


def wanted_variants(arguments: argparse.Namespace) -> dict[str, Config]:
    """The configurations to measure, by name.

    Raises:
        ValueError: an argument is out of its range.
    """
    for name in ("ranks", "steps"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} is {getattr(arguments, name)}: it must be at least 1")
    config = load_config(arguments.config, arguments.overrides)
    for size in job_sizes(config, arguments):
        if min(size.classes_of_each) < arguments.ranks:
            raise ValueError(
                f"--classes or --plan-for is {min(size.classes_of_each):g} for {arguments.ranks}"
                " ranks: each must own one at least"
            )
    configs = variants(config, compiled=not arguments.no_compile, on_gpu=arguments.device == "cuda")
    wanted = {"plain", "config", *(arguments.only or configs)}
    if unknown := wanted - set(configs):
        raise ValueError(f"--only names {sorted(unknown)}, known are {', '.join(configs)}")
    return {name: found for name, found in configs.items() if name in wanted}


def job_sizes(config: Config, arguments: argparse.Namespace) -> list[JobSize]:
    """That of --classes, then those of --plan-for."""
    classes = arguments.classes or [360_000] * len(datasets(config))
    size = size_given(config, classes, None, arguments.ranks)
    totals = [[n * total // size.num_classes for n in classes] for total in arguments.plan_for]
    return [size, *(size_given(config, each, None, arguments.ranks) for each in totals)]


def benchmark(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All variants of one configuration."""
    configs = wanted_variants(arguments)
    config = configs["config"]
    cost = network_cost(config)
    on_gpu = device.type == "cuda"
    peak = product_flops(device, DTYPES[config.precision])
    size, *others = job_sizes(config, arguments)
    jobs = {name: (found, size.classes_of_each) for name, found in configs.items()}
    further = {f"{more.num_classes:g} classes": (config, more.classes_of_each) for more in others}
    plain = set(configs) - {"config", LATE_EXCHANGE}
    sides = measure(jobs | further, device, arguments.steps, waiting_first=plain)
    report: dict[str, Any] = {
        "backbone": config.backbone.name,
        "classes": size.num_classes,
        "batch": sides["config"].job.global_batch,
        "ranks": parallel.world_size(),
        "threads_per_rank": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "product_flops_per_second": peak,
        "variants": {name: summary(sides[name], cost, peak) for name in jobs},
    }
    for found in report["variants"].values():
        found["speedup"] = report["variants"]["plain"]["seconds"] / found["seconds"]
    report["shares"] = shares(sides["config"], config)
    report["planned"] = [
        {"classes": sum(each), "seconds": summary(sides[name], cost, peak)["seconds"]}
        for name, (_, each) in further.items()
    ]
    report["calibration"] = measured_rates(sides["config"], cost)
    # Of all variants together; on a GPU each has a peak_bytes of its own.
    report["peak_process_bytes"] = (
        torch.cuda.max_memory_reserved()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return report


def add_plans(
    report: dict[str, Any], config: Config, sizes: list[JobSize], device: torch.device
) -> None:
    """Beside each measured step of --plan-for the one that plan.py would have promised."""
    rates = DEVICES["cpu" if device.type == "cpu" else "h200"]
    rates = dataclasses.replace(rates, **report["calibration"])
    for found, size in zip(report["planned"], sizes, strict=True):
        with pretend_ranks(size.num_ranks):
            seconds = make_plan(config, size, rates).step_seconds
        found["planned_seconds"] = sum(seconds.values()) - seconds["data_wait"]


def shares(side: Side, config: Config) -> dict[str, float]:
    """Share of a step of each part; communication is DDP's, as far as nothing hides it.

    The head's three collectives count as head. Data is what a batch takes the loader, beside the
    rest: it only costs time above 1. It is left out where data.train is not here.
    """
    parts = part_seconds(side)
    exchange = side.exchange_seconds()
    seconds = {
        "backbone": parts["backbone_forward"] + parts["backward"],
        "head": parts["head_forward"] + parts["head_step"],
        "communication": exchange,
        "optimizer": parts["optimizer"],
    }
    if "encoder" in parts:
        seconds["encoder"] = parts["encoder"]
    total = sum(seconds.values())
    if (of_batch := seconds_per_batch(config, side.device)) is not None:
        seconds["data"] = of_batch * config.optimizer.accumulate
    return {name: value / total for name, value in seconds.items()}


def seconds_per_batch(config: Config, device: torch.device) -> float | None:
    """What the loader takes for a batch with nothing else to do; None without the data."""
    places = [place for own in datasets(config).values() for place in paths(own).values()]
    if not all(isinstance(place, str) and Path(place).exists() for place in places):
        return None
    catalogs = {name: open_here(own) for name, own in datasets(config).items()}
    loader = new_loader(config, catalogs, device)
    num_batches = 30
    batches = iter(loader.batches(0, num_batches + 5))
    for _ in range(5):
        next(batches)
    started = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    seconds = (time.perf_counter() - started) / num_batches
    loader.close()
    return seconds


def print_table(report: dict[str, Any]) -> None:
    print(
        f"{report['backbone']}, {report['classes']:,} classes, {report['batch']} images a step,"
        f" {report['ranks']} x {report['device']}"
    )
    print(f"{'':32}{'images/s':>10}{'speedup':>10}{'of product':>12}")
    for name, found in report["variants"].items():
        print(
            f"{name:32}{found['images_per_second']:>10.0f}{found['speedup']:>10.2f}"
            f"{found['utilisation']:>12.1%}"
        )
    for found in report["planned"]:
        print(
            f"{found['classes']:,} classes: {1e3 * found['seconds']:.1f} ms a step, planned"
            f" {1e3 * found['planned_seconds']:.1f} ms by the rates of config"
        )
    print("config: " + ", ".join(f"{name} {v:.0%}" for name, v in report["shares"].items()))


def run_rank(rank: int, arguments: argparse.Namespace, port: int | None) -> None:
    """One process's part; rank is its number, where this program has started it."""
    if port is not None:
        parallel.take_rank(rank, arguments.ranks, port)
    device = parallel.start(device_name=arguments.device)
    report = benchmark(arguments, device)
    is_first = parallel.rank() == 0
    parallel.stop()
    if is_first:
        config = wanted_variants(arguments)["config"]
        add_plans(report, config, job_sizes(config, arguments)[1:], device)
        if arguments.json != "-":
            print_table(report)
        commands.write_json(arguments.json, report)


def main() -> None:
    arguments = parse_arguments()
    wanted_variants(arguments)  # a mistake is told once, not by every process
    parallel.call_on_ranks(run_rank, arguments, arguments.ranks)


if __name__ == "__main__":
    commands.run(main)
