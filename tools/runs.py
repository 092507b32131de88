"""Compare runs in a table: the settings that differ, results (the best of each set), time.

kappaface runs runs/                # every run in a folder
kappaface runs runs/a runs/b        # these
kappaface runs runs/a_seed* runs/b_seed* --against runs/a_seed0

With --against, runs that differ in run.seed alone are an arm, and each arm is compared, seed by
seed, to that of the run that is named: accuracies at the runs' ends, with intervals.
"""

import argparse
from pathlib import Path

from kappaface_dist import commands, options
from kappaface_dist.margin_study.runs_by_seed import compare_runs, seeds_table
from kappaface_dist.training.run_table import differing, find_runs, read_run, run_table


def parse_args() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("runs")])
    parser.add_argument("--against", metavar="RUN", help="compare arms of several seeds to its own")
    options.add_json(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runs = {str(folder): read_run(folder) for folder in find_runs(args.folders)}
    report = {"differing": differing(runs), "runs": runs}
    if args.against is not None:
        against = str(Path(args.against))
        report |= compare_runs(runs, against)
        text = seeds_table(report, against)
    else:
        text = run_table(runs)
    if args.json != "-":
        print(text)
    commands.write_json(args.json, report)


if __name__ == "__main__":
    commands.run(main)
