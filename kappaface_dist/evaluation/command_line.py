"""What the evaluation tools have in common on their command lines."""

import argparse
from pathlib import Path

from kappaface_dist.evaluation.resampling import NUM_REPLICATES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Size of the batches, intervals, and where the results go."""
    parser.add_argument("--batch-size", type=int, default=64, metavar="IMAGES")
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=NUM_REPLICATES,
        metavar="REPLICATES",
        help="of the confidence intervals; 0 for none (default: %(default)s)",
    )
    parser.add_argument("--report", metavar="FOLDER", help="write the HTML report there")
    parser.add_argument("--json", metavar="PATH|-", help="write the numbers as JSON")


def check_arguments(args: argparse.Namespace) -> None:
    """Before hours of work: raise ValueError for what cannot be meant."""
    if args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}, expected 1 or more")
    if args.bootstrap < 0:
        raise ValueError(f"--bootstrap is {args.bootstrap}, expected 0 (no intervals) or more")
    if args.report is not None and Path(args.report).exists() and not Path(args.report).is_dir():
        raise ValueError(f"--report is {args.report}, which is a file: name a folder")
