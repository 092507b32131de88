"""Check a machine before the first training on it: does its GPU compute what its CPU does?

python tools/gpu_check.py --json gpu_check.json
A line for each check; code 1 where one fails. It takes a few minutes, and nothing but the package.
The JSON is there from the first check on, with figures and, of what failed, where.
"""

import argparse
import os
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kappaface_dist import commands, options
from kappaface_dist.parallel.ranks import own_device
from kappaface_dist.planning.gpu_check import CHECKS, Machine
from kappaface_dist.planning.gpu_head import HEADS
from kappaface_dist.planning.gpu_ranks import RANKS
from kappaface_dist.planning.gpu_speed import HEAD_SPEEDS, SPEEDS

WORDS = 600  # letters of a line; a compiler's complaint is longer


def parse_args() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    options.add_device(parser, "cuda")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, for a trial")
    parser.add_argument(
        "--minutes",
        type=float,
        default=5.0,
        help="networks whose compilation would end later are left out (default: %(default)s)",
    )
    options.add_json(parser)
    return parser.parse_args()


def judge(machine: Machine, tell: Callable[[dict[str, Any]], None]) -> dict[str, dict[str, Any]]:
    """Every check's verdict, printed as it comes; tell is called with those so far after each."""
    verdicts: dict[str, dict[str, Any]] = {}
    for name, check in {**HEADS, **HEAD_SPEEDS, **CHECKS, **RANKS, **SPEEDS}.items():
        started = time.perf_counter()
        try:
            words, figures = check(machine)
            passed = True
        except Exception as error:  # noqa: BLE001 - whatever it is, the other checks are wanted too
            words, passed = str(error) or type(error).__name__, False
            figures = {**getattr(error, "figures", {}), "traceback": traceback.format_exc()}
        words = textwrap.shorten(words, WORDS, placeholder=" ...")
        seconds = round(time.perf_counter() - started, 1)
        verdicts[name] = {"passed": passed, "words": words, "seconds": seconds, **figures}
        print(f"{'good' if passed else 'BAD '}  {name:26}{words}  ({seconds} s)", flush=True)
        tell(verdicts)
    return verdicts


def main() -> None:
    args = parse_args()
    started = time.monotonic()
    # Before the first product: without it a GPU's library need not repeat itself.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = own_device(args.device)
    if not args.minutes > 0.0:
        raise ValueError(f"--minutes is {args.minutes:g}: it must be above 0")
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "quick": args.quick,
    }

    def write(verdicts: dict[str, Any]) -> None:
        seconds = round(time.monotonic() - started, 1)
        commands.write_json(args.json, {**facts, "seconds": seconds, "checks": verdicts})

    def write_so_far(verdicts: dict[str, Any]) -> None:
        """A file is written after each check, for whoever is cut off."""
        if args.json != "-":
            write(verdicts)

    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(device, Path(folder), args.quick, started + 60.0 * args.minutes)
        verdicts = judge(machine, write_so_far)
    write(verdicts)
    bad = [name for name, verdict in verdicts.items() if not verdict["passed"]]
    if bad:
        raise RuntimeError(f"{len(bad)} of {len(verdicts)} checks failed: {', '.join(bad)}")


if __name__ == "__main__":
    commands.run(main)
