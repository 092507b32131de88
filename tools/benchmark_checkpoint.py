"""Measure how long a checkpoint of the head holds up the training, blocking and beside it.

    torchrun --nproc_per_node=2 tools/benchmark_checkpoint.py --classes 180000 --folder /tmp/ckpt

Saves the state of a KappaFace head with SGD (centres, momentum, statistics) several times each way,
in turns, and deletes what it wrote.
"""

import argparse
import shutil
import statistics
from pathlib import Path

from kappaface_dist.checkpoint.saver import Saver
from kappaface_dist.commands import run, write_json
from kappaface_dist.head import PartialFC
from kappaface_dist.parallel import ranks as parallel


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=180_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to measure")
    parser.add_argument("--json", metavar="PATH|-", help="write the numbers as JSON")
    args = parser.parse_args()
    root = args.folder / "benchmark_checkpoint"
    device = parallel.start()
    head = PartialFC(args.classes, 512, device=device)
    state = head.sharded_state()
    own = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    pauses: dict[bool, list[float]] = {False: [], True: []}
    savers = {kind: Saver(root, keep=1, best=None, asynchronous=kind) for kind in pauses}
    savers[True].reserve(state)
    for step in range(1, 2 * args.repeats + 1):
        kind = step % 2 == 0
        numbers = {"run": {"step": step}, "metrics": {}, "world_size": parallel.world_size()}
        parallel.barrier()
        savers[kind].save(step, {}, state, args.classes, numbers)
        # The slowest rank's pause is the training's.
        pauses[kind].append(max(parallel.gather_objects(savers[kind].pause)))
        savers[kind].finish()
    total = sum(parallel.gather_objects(own))
    if parallel.rank() == 0:
        blocking, beside = statistics.median(pauses[False]), statistics.median(pauses[True])
        report = {
            "world_size": parallel.world_size(),
            "gigabytes": total / 1e9,
            "blocking_seconds": pauses[False],
            "asynchronous_seconds": pauses[True],
            "share": beside / blocking,
        }
        print(
            f"{total / 1e9:.2f} GB on {parallel.world_size()} process(es): blocking {blocking:.2f}"
            f" s, beside the training {beside:.3f} s ({beside / blocking:.1%})"
        )
        write_json(args.json, report)
        shutil.rmtree(root)
    parallel.stop()


if __name__ == "__main__":
    run(main)
