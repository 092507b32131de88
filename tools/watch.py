"""Watch a run while it trains: in the terminal, and as a page that refreshes itself.

kappaface watch runs/quickstart
kappaface watch runs/quickstart --html watch.html    # open it in a browser; no server
"""

import argparse
import sys
import time
from pathlib import Path

from kappaface_dist import commands, options
from kappaface_dist.training.watching import (
    in_terminal,
    latest_numbers,
    look_at,
    write_watch_page,
)

TO_THE_TOP = "\x1b[H\x1b[J"  # of the terminal, and clear what is below


def parse_args() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--html", type=Path, metavar="PATH", help="write a page, too")
    parser.add_argument(
        "--every", type=float, default=5.0, metavar="SECONDS", help="(default: %(default)s)"
    )
    parser.add_argument("--once", action="store_true", help="look once, and end, as --json does")
    options.add_json(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not 0.2 <= args.every <= 3600:
        raise ValueError(f"--every is {args.every:g}, expected 0.2 to 3600 seconds")
    on_terminal = sys.stdout.isatty()
    while True:
        view = look_at(args.run, time.time())
        if args.html:
            write_watch_page(args.html, view, args.every)
        commands.write_json(args.json, latest_numbers(view))
        if args.json != "-":
            print((TO_THE_TOP if on_terminal else "") + in_terminal(view), flush=True)
        if args.once or args.json is not None or view.finished:
            return
        time.sleep(args.every)


if __name__ == "__main__":
    commands.run(main)
