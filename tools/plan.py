"""Memory, traffic and time of a job before it runs.

python tools/plan.py configs/glint360k.yaml --gpus 64 --gpu h200 --classes 10e6 --images 200e6
"""

import argparse
import dataclasses
from typing import Any

from kappaface_dist import commands, options
from kappaface_dist.config.datasets import datasets, paths
from kappaface_dist.config.file import load_config
from kappaface_dist.config.keys import Config
from kappaface_dist.data.sources.remote_store import is_remote, masked
from kappaface_dist.planning.calibration import calibrated
from kappaface_dist.planning.capacity import NUM_RANKS, capacities
from kappaface_dist.planning.fitting import counted
from kappaface_dist.planning.host_memory import ranks_of_node
from kappaface_dist.planning.job_size import JobSize, size_given
from kappaface_dist.planning.plan import Plan, make_plan, remedies
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.planning.step_time import DEVICES


def parse_arguments() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    parser.add_argument("config", help="a YAML file of configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--gpus", type=int, default=8, help="ranks, one for each")
    parser.add_argument("--gpu", choices=sorted(DEVICES), default="h200", help="which")
    parser.add_argument(
        "--classes",
        type=options.positive,
        action="append",
        help="identities, of several datasets once for each; default: those of data.train",
    )
    parser.add_argument(
        "--images",
        type=options.positive,
        action="append",
        help="of the dataset, or of each; default: those of data.train",
    )
    parser.add_argument(
        "--calibration",
        action="append",
        default=[],
        metavar="JSON",
        help="report of benchmark_step.py for this network, or of benchmark_head.py, from such a"
        " machine with as many processes",
    )
    parser.add_argument(
        "--capacity",
        action="store_true",
        help="only say how many classes 1, 8, 64 and 512 of these GPUs hold, for each state",
    )
    options.add_json(parser)
    return parser.parse_intermixed_args()


def job_size(config: Config, arguments: argparse.Namespace) -> JobSize:
    """The size given, or that of the datasets."""
    if config.data.labels == "mean":
        raise ValueError(
            "data.labels is mean, whose head sees an image once for each of its labels, and plan.py"
            " knows one label each: let launch/train.py --check count the memory where the data is"
        )
    owns, classes, images = datasets(config), arguments.classes, arguments.images
    if classes is None:
        for own in owns.values():
            for path in paths(own).values():
                if any(map(is_remote, [path] if isinstance(path, str) else path)):
                    raise ValueError(
                        f"data.train is {masked(str(path))}, which would have to be fetched to be"
                        " counted: give --classes and --images"
                    )
        try:
            found = counted(config)
        except ValueError as error:
            raise ValueError(f"{error}; or give --classes and --images") from error
        classes, images = [number for number, _ in found], images or [number for _, number in found]
    # Without a number of images only the time in all is unknown.
    size = size_given(config, classes, images, arguments.gpus)
    for number in classes:
        if not 1 <= arguments.gpus <= number:
            raise ValueError(
                f"--gpus is {arguments.gpus} for {number:g} classes: each rank must own one at"
                " least"
            )
    return size


def report_of(plan: Plan, size: JobSize, gpu: str, advice: list[tuple[str, int]]) -> dict[str, Any]:
    return {
        "gpus": size.num_ranks,
        "gpu": gpu,
        "classes": size.num_classes,
        "images": size.num_images,
        "classes_per_rank": size.classes_per_rank,
        "memory_bytes": plan.memory_bytes,
        "operation_bytes": plan.operation_bytes,
        "host_memory_bytes": plan.host.items,
        "host_memory_bytes_per_node": plan.host.total_bytes * ranks_of_node(size),
        "uncopied_bytes": plan.host.uncopied_bytes,
        "total_memory_bytes": plan.total_memory_bytes,
        "usable_memory_bytes": plan.usable_bytes,
        "fits": plan.fits,
        "largest_num_classes": plan.largest_num_classes,
        "collectives_per_step": len(plan.collectives),
        "collective_bytes_per_step": plan.collective_bytes,
        "step_seconds": plan.step_seconds,
        "images_per_second": plan.images_per_second,
        "days": plan.seconds_in_all / 86400,
        "remedies": [{"settings": text, "total_memory_bytes": total} for text, total in advice],
    }


def print_report(report: dict[str, Any]) -> None:
    print(f"{report['classes']:,} classes on {report['gpus']} x {report['gpu']}, of each:")
    for name, value in report["memory_bytes"].items():
        print(f"  {name:24}{value / 1e6:>12,.1f} MB")
    fits = "fits" if report["fits"] else "does NOT fit"
    print(
        f"  {'in all':24}{report['total_memory_bytes'] / 1e6:>12,.1f} MB of"
        f" {report['usable_memory_bytes'] / 1e6:,.0f} usable: {fits};"
        f" up to {report['largest_num_classes']:,} classes would"
    )
    others = ", ".join(f"{k} {v / 1e6:,.1f} MB" for k, v in report["operation_bytes"].items())
    print(f"  beside what stays, in place of a step's: {others}")
    for remedy in report["remedies"]:
        print(f"  with {remedy['settings']}: {remedy['total_memory_bytes'] / 1e6:,.1f} MB")
    print("of its node's own memory, beside Python's and CUDA's few GB, each of them:")
    for name, value in report["host_memory_bytes"].items():
        print(f"  {name:24}{value / 1e6:>12,.1f} MB")
    print(f"  a node, all its ranks   {report['host_memory_bytes_per_node'] / 1e6:>12,.1f} MB")
    if report["uncopied_bytes"]:
        print(
            f"  at each save the training waits until {report['uncopied_bytes'] / 1e6:,.1f} MB of a"
            " rank are written, for which there are no copies"
        )
    print(f"a step, {report['collectives_per_step']} collectives:")
    for name, value in report["collective_bytes_per_step"].items():
        print(f"  {name:24}{value / 1e6:>12,.3f} MB")
    for name, value in report["step_seconds"].items():
        print(f"  {name:24}{value * 1e3:>12,.2f} ms")
    print(f"{report['images_per_second']:,.0f} images/s, {report['days']:.2f} days in all")


def main() -> None:
    arguments = parse_arguments()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.capacity:
        report = {"gpu": arguments.gpu, "states": []}
        if arguments.json != "-":
            numbers = "".join(f"{n:>11} GPUs" for n in NUM_RANKS)
            print(f"{'classes that fit':36}{'a class':>11}{numbers}")
        for found in capacities(config, DEVICES[arguments.gpu]):
            report["states"].append(dataclasses.asdict(found))
            if arguments.json != "-":
                numbers = "".join(f"{largest:>15,}" for largest in found.largest.values())
                print(f"{found.state:36}{found.bytes_per_class:>9,.0f} B{numbers}")
        commands.write_json(arguments.json, report)
        return
    device = calibrated(DEVICES[arguments.gpu], arguments.calibration, config.backbone.name)
    size = job_size(config, arguments)
    with pretend_ranks(size.num_ranks):
        plan = make_plan(config, size, device)
        advice = [] if plan.fits else remedies(config, size, device)
    report = report_of(plan, size, arguments.gpu, advice)
    if arguments.json != "-":
        print_report(report)
    commands.write_json(arguments.json, report)


if __name__ == "__main__":
    commands.run(main)
