"""Measure how long a checkpoint of the head holds up the training, blocking and beside it.

    torchrun --nproc_per_node=2 tools/benchmark_checkpoint.py --classes 180000 --folder /tmp/ckpt

Saves the state of a KappaFace head with SGD (centres, momentum, statistics) several times each way,
in turns, and deletes what it wrote.
"""

import statistics
from pathlib import Path

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.planning.checkpoint_benchmark import measure_pauses


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--classes", type=options.positive, default=180_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to measure")
    options.add_json(parser)
    args = parser.parse_args()
    device = parallel.start()
    folder = args.folder / "benchmark_checkpoint"
    report = measure_pauses(folder, args.classes, args.repeats, device)
    if parallel.rank() == 0:
        blocking, beside = (
            statistics.median(report[f"{way}_seconds"]) for way in ("blocking", "asynchronous")
        )
        print(
            f"{report['gigabytes']:.2f} GB on {report['world_size']} process(es): blocking"
            f" {blocking:.2f} s, beside the training {beside:.3f} s ({report['share']:.1%})"
        )
        write_json(args.json, report)
    parallel.stop()


if __name__ == "__main__":
    run(main)
