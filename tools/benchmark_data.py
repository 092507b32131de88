"""Time the loader against DALI's own record reader and a plain torch DataLoader, in one run.

Each takes its turn in a fresh process, several times over; the medians are reported. All deliver
the same: shuffled, mirrored at random, normalised float32 batches on the device.
Example: python tools/benchmark_data.py data/faces/train.rec --loader cpu --device cpu --json -
"""

import argparse
import multiprocessing
import os
import sys
from typing import Any

from kappaface_dist import commands
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.planning.loader_benchmark import CONTESTANTS, median, take_turn, time_reader


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a .rec file (DALI's reader wants its .idx beside it)")
    parser.add_argument("--loader", choices=("dali", "cpu"), default="cpu", help="ours")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dali-decodes", action="store_true", help="on the CPU, too: what the GPU does, done there"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--augment", default="flip", help="preset of ours (the others only flip)")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as cores")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--json", metavar="PATH", help="write a report as JSON, - for stdout")
    args = parser.parse_args()
    args.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    args.threads = args.threads or args.cores
    return args


def main() -> None:
    args = parse_args()
    catalog = open_catalog(args.data)
    context = multiprocessing.get_context("spawn")
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for _ in range(args.rounds):
        for name in CONTESTANTS:
            results = context.Queue()
            process = context.Process(target=take_turn, args=(name, args, results))
            process.start()
            turns[name].append(results.get())
            process.join()
    report: dict[str, Any] = {name: median(found) for name, found in turns.items()}
    speed = {name: numbers.get("images_per_second") for name, numbers in report.items()}
    for name in ("dali_reader", "torch_dataloader"):
        ratio = speed["ours"] / speed[name] if speed["ours"] and speed[name] else None
        report[f"ratio_to_{name}"] = ratio
        if ratio:
            of_cpu = "images_per_cpu_second"
            report[f"cpu_ratio_to_{name}"] = report["ours"][of_cpu] / report[name][of_cpu]
    report["reader_records_per_second"] = time_reader(catalog)
    report |= {name: value for name, value in vars(args).items() if name != "json"}
    out = sys.stderr if args.json == "-" else sys.stdout
    for name, numbers in speed.items():
        text = f"{numbers:.0f} images/s" if numbers else report[name]["error"]
        print(f"{name:<18}{text}", file=out)
    print(f"{'reader alone':<18}{report['reader_records_per_second']:.0f} records/s", file=out)
    commands.write_json(args.json, report)


if __name__ == "__main__":
    commands.run(main)
