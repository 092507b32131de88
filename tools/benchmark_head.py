"""Time and memory of the streaming head beside a dense one, taking turns in one run.

    python tools/benchmark_head.py --classes 200000 --batch-size 512 --json -
    python tools/benchmark_head.py --classes 200000 --batch-size 512 --ranks 2
    torchrun --nproc_per_node 8 tools/benchmark_head.py --device cuda --dtype bf16 \
        --classes 10000000 --batch-size 1024 --centre-dtype bf16 --momentum-dtype none
    python tools/benchmark_head.py --all --device cuda --json head.json

--classes and --batch-size count over all ranks. With --ranks above 1 it starts its own processes,
each with one thread, as torchrun's have; with one rank torch uses all cores (or OMP_NUM_THREADS).
--all goes through the sizes and settings of BENCHMARKS.md; --shrink divides its sizes for a trial.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from kappaface_dist import commands, options
from kappaface_dist.head import ArcFace, PartialFC
from kappaface_dist.head.shard import shard_classes
from kappaface_dist.head.softmax.settings import FUSED, Softmax
from kappaface_dist.head.softmax.tiles import why_not
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.planning.dense_head import MOMENTUM, WEIGHT_DECAY, DenseSide
from kappaface_dist.planning.head_benchmark import (
    HeadSide,
    RandomBatch,
    SeveralSide,
    StreamingSide,
    measure_heads,
)
from kappaface_dist.planning.head_cases import CASES
from kappaface_dist.training.optim import build_row_optimizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=options.positive, default=200_000)
    options.add_batch_size(parser, 512, older="--batch")
    options.add_embedding_size(parser, older="--embedding")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--sample-rate", type=float, default=1.0)
    options.add_device(parser)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--dense-dtype", choices=sorted(DTYPES), help="as --dtype if not given")
    parser.add_argument(
        "--heads",
        type=options.positive,
        default=1,
        help="beside one of all classes so many heads, each of its part of classes and images",
    )
    parser.add_argument(
        "--sub-centres",
        type=options.positive,
        default=1,
        help="beside one of a centre a class one of so many, as head.sub_centres",
    )
    parser.add_argument("--no-dense", dest="dense", action="store_false")
    parser.add_argument("--logit-cache-bytes", type=options.count, default=0)
    parser.add_argument("--skip-mass", type=float, default=0.0, help="as head.skip_mass")
    parser.add_argument(
        "--near", action="store_true", help="images around their classes' centres, not anywhere"
    )
    parser.add_argument("--chunk-bytes", type=options.positive, help="of one chunk of logits")
    parser.add_argument(
        "--centre-dtype",
        choices=sorted(DTYPES),
        default="fp32",
        help="of the centres between steps; bf16: rounded stochastically",
    )
    parser.add_argument("--momentum-dtype", choices=[*sorted(DTYPES), "none"], default="fp32")
    parser.add_argument("--fused", choices=FUSED, default="auto", help="Triton's, as head.fused")
    parser.add_argument("--no-fused", dest="fused", action="store_const", const="off")
    parser.add_argument(
        "--split", action=argparse.BooleanOptionalAction, help="split centres; by default on GPUs"
    )
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each side")
    parser.add_argument("--all", action="store_true", help="every case of BENCHMARKS.md")
    parser.add_argument("--shrink", type=int, default=1, help="divide the sizes of --all")
    options.add_json(parser)
    return parser.parse_args()


def one_head(
    arguments: argparse.Namespace,
    device: torch.device,
    classes: int,
    *,
    exact: bool = False,
    sub_centres: int = 1,
) -> PartialFC:
    """Our head as asked for; exact: with all classes and nothing skipped."""
    return PartialFC(
        classes,
        arguments.embedding,
        ArcFace(),
        sample_rate=1.0 if exact else arguments.sample_rate,
        skip_mass=0.0 if exact else arguments.skip_mass,
        optimizer=build_row_optimizer(
            "sgd",
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            momentum_dtype=DTYPES.get(arguments.momentum_dtype),  # none is in no table
        ),
        dtype=DTYPES[arguments.dtype],
        centre_dtype=DTYPES[arguments.centre_dtype],
        logit_cache_bytes=arguments.logit_cache_bytes,
        chunk_bytes=arguments.chunk_bytes,
        split_centres=arguments.split,
        fused=arguments.fused,
        sub_centres=sub_centres,
        device=device,
    )


def benchmark(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All sides of one size, and their ratios."""
    num_ranks = parallel.world_size()
    num_images = arguments.batch // num_ranks
    make = partial(one_head, arguments, device)
    builders: dict[str, Callable[[], HeadSide]] = {
        "streaming": lambda: StreamingSide(make(arguments.classes))
    }
    if arguments.sample_rate < 1 or arguments.skip_mass:
        builders["streaming_full"] = lambda: StreamingSide(make(arguments.classes, exact=True))
    if (count := arguments.heads) > 1:
        builders["several"] = lambda: SeveralSide(
            [make(arguments.classes // count) for _ in range(count)], num_images
        )
    if (each := arguments.sub_centres) > 1:
        builders["several_centres"] = lambda: StreamingSide(
            make(arguments.classes, sub_centres=each)
        )
    if arguments.dense:
        dtype = DTYPES[arguments.dense_dtype or arguments.dtype]
        builders["dense"] = partial(
            DenseSide, arguments.classes, arguments.embedding, dtype, device
        )
    num_rows = len(shard_classes(arguments.classes, 0, num_ranks))  # of the largest shard
    skipped = ("all", "dense", "json", "shrink")
    report = {
        **{name: value for name, value in vars(arguments).items() if name not in skipped},
        "ranks": num_ranks,
        "threads_per_rank": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    sides = measure_heads(
        builders,
        RandomBatch(arguments.classes, num_images, arguments.embedding, device, arguments.near),
        num_logits=num_rows * num_images * num_ranks,
        num_parameters=num_rows * arguments.embedding,
        num_repeats=arguments.repeats,
    )
    # The seconds are the wall clock's; the processor's are the steadier on a machine in use.
    pairs = (
        ("streaming", "dense", ""),
        ("streaming", "streaming_full", "_to_full"),
        ("several", "streaming", "_of_several"),
        ("several_centres", "streaming", "_of_several_centres"),
    )
    measures = {"time": "seconds", "processor_time": "processor_seconds", "memory": "extra_bytes"}
    for one, other, suffix in pairs:
        if one in sides and other in sides:
            for name, key in measures.items():
                report[f"{name}_ratio{suffix}"] = sides[one][key] / sides[other][key]
    return {**report, **sides}


def print_table(name: str, report: dict[str, Any]) -> None:
    print(f"{name:24}{'seconds':>10}{'ps/logit':>14}{'extra MB':>10}{'state B/param':>15}")
    for side_name in ("streaming", "streaming_full", "several", "several_centres", "dense"):
        if side_name in report:
            side = report[side_name]
            print(
                f"  {side_name:22}{side['seconds']:>10.4f}{side['ps_per_logit']:>14.2f}"
                f"{side['extra_bytes'] / 1e6:>10.1f}{side['state_bytes_per_parameter']:>15.2f}"
            )
    for share in ("skipped_mass", "skipped_tiles"):
        if share in report["streaming"]:
            print(f"  {share} {report['streaming'][share]:.4f}")
    for ratio in (key for key in report if "_ratio" in key):
        print(f"  {ratio} {report[ratio]:.3f}")


def run_cases(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The case of the command line, or all of `CASES`; prints each as it is done."""
    cases = {f"{arguments.classes} x {arguments.batch}": arguments}
    if arguments.all:
        cases = {}
        for name, changes in CASES.items():
            cases[name] = case = argparse.Namespace(**{**vars(arguments), **changes})
            case.classes = max(case.classes // arguments.shrink, 1000)
            case.batch = max(case.batch // arguments.shrink, 4 * case.ranks)
            if device.type == "cpu":  # without their GPU's bf16 units these are for a trial only
                case.repeats = 1
            plain = Softmax(scale=1.0, dtype=torch.bfloat16)
            if case.fused == "tiles" and (why := why_not(plain, device, case.embedding)):
                print(f"{name}: with chunks, since {why.split(':')[0]}", file=sys.stderr)
                case.fused = "chunks"
    reports = {}
    for name, case in cases.items():
        reports[name] = benchmark(case, device)
        if parallel.rank() == 0 and arguments.json != "-":
            print_table(name, reports[name])
            if arguments.all:  # for whoever is cut off
                commands.write_json(arguments.json, reports)
    return reports if arguments.all else next(iter(reports.values()))


def run_rank(rank: int, arguments: argparse.Namespace, port: int | None) -> None:
    """One process's part; rank is its number, where this program has started it."""
    if port is not None:
        parallel.take_rank(rank, arguments.ranks, port)
    report = run_cases(arguments, parallel.start(device_name=arguments.device))
    if parallel.rank() == 0:
        commands.write_json(arguments.json, report)
    parallel.stop()


def main() -> None:
    arguments = parse_arguments()
    for name in ("classes", "batch", "embedding", "ranks", "repeats", "shrink"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} is {getattr(arguments, name)}, expected 1 or more")
    if arguments.batch % (arguments.ranks * arguments.heads):
        raise ValueError(
            f"--batch-size is {arguments.batch} for {arguments.ranks} ranks and {arguments.heads}"
            " heads: each takes as many images, choose a multiple"
        )
    parallel.call_on_ranks(run_rank, arguments, arguments.ranks)


if __name__ == "__main__":
    commands.run(main)
