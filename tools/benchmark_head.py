"""Time and memory of the streaming head beside a dense one, taking turns in one run.

    python tools/benchmark_head.py --classes 200000 --batch 512 --json -
    python tools/benchmark_head.py --classes 200000 --batch 512 --ranks 2
    torchrun --nproc_per_node 8 tools/benchmark_head.py --classes 10000000 --batch 1024 --dtype bf16

--classes and --batch count over all ranks. With --ranks above 1 it starts its own processes, each
with one thread, as torchrun's have; with one rank torch uses all cores (or OMP_NUM_THREADS).
"""

import argparse
import os
import socket
from functools import partial
from typing import Any

import torch
import torch.multiprocessing as mp

from kappaface_dist import commands, parallel
from kappaface_dist.head import ArcFace, PartialFC
from kappaface_dist.head.benchmark import (
    Batch,
    DenseSide,
    StreamingSide,
    is_rank0,
    local_classes,
    measure,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=512, help="images of all ranks together")
    parser.add_argument("--embedding", type=int, default=512)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--sample-rate", type=float, default=1.0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each side")
    parser.add_argument("--json", help="file for the report, - for standard output")
    return parser.parse_args()


def streaming_side(
    arguments: argparse.Namespace, device: torch.device, sample_rate: float
) -> StreamingSide:
    head = PartialFC(
        arguments.classes,
        arguments.embedding,
        ArcFace(),
        sample_rate=sample_rate,
        dtype=DTYPES[arguments.dtype],
        device=device,
    )
    return StreamingSide(head)


def benchmark(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All sides of one size, and their ratios."""
    num_ranks = parallel.world_size()
    num_images = arguments.batch // num_ranks
    builders: dict[str, Any] = {
        "streaming": partial(streaming_side, arguments, device, arguments.sample_rate)
    }
    if arguments.sample_rate < 1:
        builders["streaming_full"] = partial(streaming_side, arguments, device, 1.0)
    builders["dense"] = partial(
        DenseSide, arguments.classes, arguments.embedding, DTYPES[arguments.dtype], device
    )
    num_rows = local_classes(arguments.classes)
    report: dict[str, Any] = {
        "classes": arguments.classes,
        "batch": num_images * num_ranks,
        "embedding": arguments.embedding,
        "ranks": num_ranks,
        "threads_per_rank": torch.get_num_threads(),
        "sample_rate": arguments.sample_rate,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "dtype": arguments.dtype,
        "torch": torch.__version__,
    }
    report |= measure(
        builders,
        Batch(arguments.classes, num_images, arguments.embedding, device),
        num_logits=num_rows * num_images * num_ranks,
        num_parameters=num_rows * arguments.embedding,
        num_repeats=arguments.repeats,
    )
    streaming, dense = report["streaming"], report["dense"]
    report["time_ratio"] = streaming["seconds"] / dense["seconds"]
    report["memory_ratio"] = streaming["extra_bytes"] / dense["extra_bytes"]
    if arguments.sample_rate < 1:
        full_seconds = report["streaming_full"]["seconds"]
        report["time_ratio_to_full"] = streaming["seconds"] / full_seconds
    return report


def print_table(report: dict[str, Any]) -> None:
    print(f"{'':16}{'seconds':>10}{'ps/logit':>10}{'extra MB':>10}{'state B/param':>15}")
    for name in ("streaming", "streaming_full", "dense"):
        if name in report:
            side = report[name]
            print(
                f"{name:16}{side['seconds']:>10.4f}{side['ps_per_logit']:>10.2f}"
                f"{side['extra_bytes'] / 1e6:>10.1f}{side['state_bytes_per_parameter']:>15.2f}"
            )
    ratios = {name: round(value, 3) for name, value in report.items() if "_ratio" in name}
    print("  ".join(f"{name} {value}" for name, value in ratios.items()))


def run_rank(rank: int, arguments: argparse.Namespace, port: int | None) -> None:
    """One process's part; rank is its number, where this program has started it."""
    if port is not None:
        torch.set_num_threads(1)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(arguments.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("--device is cuda, but torch sees no GPU: use --device cpu")
    started = parallel.start()
    device = started if arguments.device == "cuda" else torch.device("cpu")
    report = benchmark(arguments, device)
    if is_rank0():
        if arguments.json != "-":
            print_table(report)
        commands.write_json(arguments.json, report)
    parallel.stop()


def main() -> None:
    arguments = parse_arguments()
    if arguments.batch % arguments.ranks:
        raise ValueError(
            f"--batch is {arguments.batch} for {arguments.ranks} ranks: all ranks take equally many"
            " images, choose a multiple"
        )
    if arguments.ranks == 1 or "WORLD_SIZE" in os.environ:
        run_rank(0, arguments, None)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(run_rank, (arguments, port), nprocs=arguments.ranks)


if __name__ == "__main__":
    commands.run(main)
