"""Compare runs in a table: the settings that differ, results (the best of each set), time.

kappaface runs runs/                # every run in a folder
kappaface runs runs/a runs/b        # these
"""

import argparse
from pathlib import Path

from kappaface_dist import commands, options
from kappaface_dist.training.run_table import differing, find_runs, read_run, run_table


def parse_args() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("runs")])
    options.add_json(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runs = {str(folder): read_run(folder) for folder in find_runs(args.folders)}
    if args.json != "-":
        print(run_table(runs))
    commands.write_json(args.json, {"differing": differing(runs), "runs": runs})


if __name__ == "__main__":
    commands.run(main)
