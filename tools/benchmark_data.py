"""Time the loader against DALI's own record reader and a plain torch DataLoader, in one run.

Each takes its turn in a fresh process, several times over; the medians are reported. All deliver
the same: shuffled, mirrored at random, normalised float32 batches on the device.
Example: python tools/benchmark_data.py data/faces/train.rec --loader cpu --device cpu --json -
"""

import argparse
import sys
from dataclasses import asdict
from typing import Any

from kappaface_dist import commands, options
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.parallel.cores import num_cores
from kappaface_dist.parallel.ranks import own_device
from kappaface_dist.planning.loader_benchmark import Task, take_turns, time_reader


def parse_args() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    parser.add_argument("data", help="a .rec file (DALI's reader wants its .idx beside it)")
    parser.add_argument("--loader", choices=("dali", "cpu"), default="cpu", help="ours")
    options.add_device(parser)
    parser.add_argument(
        "--dali-decodes", action="store_true", help="on the CPU, too: what the GPU does, done there"
    )
    options.add_batch_size(parser, 128)
    options.add_image_size(parser)
    parser.add_argument("--augment", default="flip", help="preset of ours (the others only flip)")
    options.add_threads(parser)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    options.add_json(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cores = num_cores()
    own_device(args.device)  # which is there
    catalog = open_catalog(args.data)
    task = Task(
        args.data,
        args.loader,
        args.device,
        args.dali_decodes,
        args.batch_size,
        args.image_size,
        args.augment,
        args.threads or cores,
    )
    found = take_turns(task, num_rounds=args.rounds, seconds=args.seconds, cores=cores)
    report: dict[str, Any] = {**found, **ratios(found)}
    report["reader_records_per_second"] = time_reader(catalog)
    report |= {**asdict(task), "seconds": args.seconds, "rounds": args.rounds, "cores": cores}
    out = sys.stderr if args.json == "-" else sys.stdout
    for name, numbers in found.items():
        speed = numbers.get("images_per_second")
        print(f"{name:<18}{f'{speed:.0f} images/s' if speed else numbers['error']}", file=out)
    print(f"{'reader alone':<18}{report['reader_records_per_second']:.0f} records/s", file=out)
    commands.write_json(args.json, report)


def ratios(found: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Ours to each other, in time and in processor time; None where one of the two failed."""
    result: dict[str, float | None] = {}
    ours = found["ours"]
    for name in ("dali_reader", "torch_dataloader"):
        other = found[name]
        if "error" in ours or "error" in other:
            result[f"ratio_to_{name}"] = None
            continue
        for key, short in (("images_per_second", ""), ("images_per_cpu_second", "cpu_")):
            result[f"{short}ratio_to_{name}"] = ours[key] / other[key]
    return result


if __name__ == "__main__":
    commands.run(main)
