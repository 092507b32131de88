"""Run one rank of a large job alone, and compare what it takes with the plan.

python tools/rehearse.py configs/glint360k.yaml --ranks 512 --rank 0 --classes 100e6
The other ranks are pretended (torch's fake process group); shapes, memory and computation are real.
With --fake cuda the tensors are fake, too, on a GPU that need not be there: any size, bytes alone.
"""

import argparse
from typing import Any

from kappaface_dist import commands, options
from kappaface_dist.config.file import load_config
from kappaface_dist.parallel.ranks import own_device
from kappaface_dist.planning.count_collectives import bytes_by_name
from kappaface_dist.planning.job_size import size_given
from kappaface_dist.planning.operations import rehearse_without_a_gpu
from kappaface_dist.planning.plan import make_plan
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.planning.rehearsal import rehearse
from kappaface_dist.planning.step_time import DEVICES

STATE = ("centres", "centre_optimizer", "class_statistics")


def parse_arguments() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    parser.add_argument("config", help="a YAML file of configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument(
        "--classes",
        type=options.positive,
        action="append",
        required=True,
        help="identities of all ranks, of several datasets once for each",
    )
    options.add_device(parser)
    parser.add_argument(
        "--fake",
        choices=["cuda"],
        help="fake tensors, which take no memory, on this device; also what saving, loading, an"
        " epoch's end and the like take (needs a torch that is built for CUDA, and no GPU)",
    )
    options.add_json(parser)
    return parser.parse_intermixed_args()


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rehearse and plan the same job."""
    config = load_config(arguments.config, arguments.overrides)
    if not 0 <= arguments.rank < arguments.ranks:
        raise ValueError(
            f"--rank is {arguments.rank}, expected 0 to {arguments.ranks - 1}, one of --ranks"
        )
    device = own_device(arguments.device)
    size = size_given(config, arguments.classes, None, arguments.ranks)
    with pretend_ranks(arguments.ranks, arguments.rank):
        if arguments.fake:
            measured = rehearse_without_a_gpu(config, size)
        else:
            measured = rehearse(config, size, device)
        on_cpu = device.type == "cpu" and not arguments.fake
        plan = make_plan(config, size, DEVICES["cpu" if on_cpu else "h200"])
    calls = measured.pop("collectives")
    return {
        "ranks": arguments.ranks,
        "rank": arguments.rank,
        "classes": size.num_classes,
        **measured,
        "planned_memory_bytes": plan.memory_bytes,
        "planned_operation_bytes": plan.operation_bytes,
        "planned_host_bytes": plan.host.items,
        "collectives": [[call.name, call.num_bytes] for call in calls],
        "planned_collectives": [[call.name, call.num_bytes] for call in plan.collectives],
        "collective_bytes_per_step": bytes_by_name(calls),
    }


def print_report(report: dict[str, Any]) -> None:
    print(f"{'':24}{'planned MB':>14}{'measured MB':>14}{'ratio':>8}")
    for name, measured in report["memory_bytes"].items():
        planned = report["planned_memory_bytes"][name]
        ratio = f"{planned / measured:.3f}" if measured else "-"
        print(f"{name:24}{planned / 1e6:>14.3f}{measured / 1e6:>14.3f}{ratio:>8}")
    state = sum(report["memory_bytes"][name] for name in STATE)
    for name, (device, host) in report.get("operation_bytes", {}).items():
        planned = report["planned_operation_bytes"].get(name)
        words = f"{planned / 1e6:>14.3f}" if planned is not None else f"{'-':>14}"
        ratio = f"{planned / device:>8.3f}" if planned and device else f"{'':8}"
        print(
            f"{name:24}{words}{device / 1e6:>14.3f}{ratio}  {device / state:.2%} of the classes'"
            f" state; on the host {host / 1e6:.3f} MB"
        )
    # SyncBatchNorm's come between the others, where a plan has them first.
    same = sorted(report["collectives"]) == sorted(report["planned_collectives"])
    print(f"{len(report['collectives'])} collectives a step, {'as' if same else 'NOT as'} planned")
    if "seconds" in report:
        print(f"{report['seconds']:.2f} s for the last step")


def main() -> None:
    arguments = parse_arguments()
    report = compare(arguments)
    if arguments.json != "-":
        print_report(report)
    commands.write_json(arguments.json, report)


if __name__ == "__main__":
    commands.run(main)
