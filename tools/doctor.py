"""Say what of this computer trains, what is too old, and what to install; code 1 if it cannot.

kappaface doctor
"""

import argparse
import sys
from pathlib import Path

from kappaface_dist import commands, options
from kappaface_dist.planning.doctor import ABSENT, BAD, OK, examine

MARKS = {OK: "ok", ABSENT: "-", BAD: "BAD"}


def parse_args() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where runs are written (default: here)"
    )
    options.add_json(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    findings = examine(args.folder)
    bad = [finding.name for finding in findings if finding.verdict == BAD]
    if args.json != "-":
        for finding in findings:
            print(f"{MARKS[finding.verdict]:4}{finding.name:15}{finding.text}")
        print(f"\ncannot train: {', '.join(bad)}" if bad else "\nthis computer can train")
    report = {"can_train": not bad, "findings": [vars(finding) for finding in findings]}
    commands.write_json(args.json, report)
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    commands.run(main)
