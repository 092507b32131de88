"""Check a machine before the first training on it: does its GPU compute what its CPU does?

python tools/gpu_check.py --json gpu_check.json
A line for each check; code 1 where one fails. It takes a few minutes, and nothing but the package.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from kappaface_dist import commands, options
from kappaface_dist.planning.gpu_check import CHECKS, Machine
from kappaface_dist.planning.gpu_ranks import RANKS
from kappaface_dist.planning.gpu_speed import SPEEDS


def parse_args() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    options.add_device(parser, "cuda", kind=str)
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, for a trial")
    options.add_json(parser)
    return parser.parse_args()


def chosen_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device is {name!r}: use cuda, cuda:1 or cpu") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ValueError(f"--device is {name}: use cuda, cuda:1 or cpu")
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise RuntimeError(
            f"--device is {name}, but torch sees {torch.cuda.device_count()} GPUs: see that the"
            " driver is there (nvidia-smi) and that torch is a build for CUDA, or use --device cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def judge(machine: Machine) -> dict[str, dict[str, Any]]:
    """Every check's verdict, printed as it comes."""
    verdicts = {}
    for name, check in {**CHECKS, **RANKS, **SPEEDS}.items():
        started = time.perf_counter()
        figures: dict[str, Any] = {}
        try:
            words, figures = check(machine)
            passed = True
        except Exception as error:  # noqa: BLE001 - whatever it is, the other checks are wanted too
            words, passed = " ".join(str(error).split()) or type(error).__name__, False
        seconds = round(time.perf_counter() - started, 1)
        verdicts[name] = {"passed": passed, "words": words, "seconds": seconds, **figures}
        print(f"{'good' if passed else 'BAD '}  {name:24}{words}  ({seconds} s)", flush=True)
    return verdicts


def main() -> None:
    args = parse_args()
    device = chosen_device(args.device)
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "quick": args.quick,
    }
    with tempfile.TemporaryDirectory() as folder:
        verdicts = judge(Machine(device, Path(folder), args.quick))
    bad = [name for name, verdict in verdicts.items() if not verdict["passed"]]
    commands.write_json(args.json, {**facts, "checks": verdicts})
    if bad:
        raise RuntimeError(f"{len(bad)} of {len(verdicts)} checks failed: {', '.join(bad)}")


if __name__ == "__main__":
    commands.run(main)
