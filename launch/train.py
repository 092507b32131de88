"""Train: torchrun --nproc_per_node=8 launch/train.py configs/glint360k.yaml [key=value ...]"""

import argparse
import json
import logging
import os
import sys
from contextlib import nullcontext
from typing import Any

import torch

from kappaface_dist import commands
from kappaface_dist.config.file import load_config, to_yaml
from kappaface_dist.config.keys import Config
from kappaface_dist.models.summary_file import read_summary
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.parallel.signals import code_after_stop
from kappaface_dist.training.build import build_job, derived_numbers
from kappaface_dist.training.config_record import record_config
from kappaface_dist.training.folder_lock import FolderLock
from kappaface_dist.training.problem import with_margin_defaults
from kappaface_dist.training.run_log import start_logging
from kappaface_dist.training.summary import summary_table, write_report
from kappaface_dist.training.trainer import Trainer
from kappaface_dist.training.verification import verification_page


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train a face-embedding network. The same command again goes on where it was."
    )
    parser.add_argument("config", help="a YAML file of configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. optimizer.lr=0.05")
    parser.add_argument("--print-config", action="store_true", help="show what applies, and stop")
    parser.add_argument(
        "--check", action="store_true", help="build everything, report derived numbers, and stop"
    )
    # Not parse_args: overrides may stand on either side of the options.
    args = parser.parse_intermixed_args()
    config = with_margin_defaults(load_config(args.config, args.overrides))
    if args.print_config:
        if os.environ.get("RANK", "0") == "0":
            print(to_yaml(config), end="")
        return
    fits: dict[str, Any] = {}
    if args.check and os.environ.get("RANK", "0") == "0":
        from kappaface_dist.planning.fitting import check_machine

        fits = check_machine(config)  # the others wait for this rank to join
    # The watchdog, which names the rank that hangs, comes first; the group ends what it cannot see.
    device = parallel.start(timeout_minutes=1.5 * config.run.timeout_minutes)
    told = train(config, device, check=args.check, fits=fits)
    parallel.stop()
    if told is not None:
        sys.exit(code_after_stop(told, config.run.stop_exit_code))


def train(
    config: Config, device: torch.device, *, check: bool, fits: dict[str, Any]
) -> bool | None:
    """Build the parts, fit, and write the report.

    Args:
        check: build only, and print the numbers that follow, with those of `fits`.

    Returns:
        None at the end; where a signal stopped it before, whether one reached this rank's node.
    """
    if check:
        numbers = derived_numbers(build_job(config, device))
        if parallel.rank() == 0:
            print(json.dumps(numbers | fits, indent=2))
        return None
    first = parallel.rank() == 0
    lock = parallel.agree(lambda: FolderLock(config.folder) if first else None)
    with lock or nullcontext():
        return fit(config, device)


def fit(config: Config, device: torch.device) -> bool | None:
    """Go on in a folder that is this run's alone; returns what `train` does."""
    first = parallel.rank() == 0
    parallel.agree(lambda: start_logging(config.folder if first else None))
    stop_file = config.folder / "stopped.json"
    job = build_job(config, device)
    if first:
        stop_file.unlink(missing_ok=True)
    trainer = Trainer(job)
    # After it has refused what is another problem.
    step = trainer.state.step
    parallel.agree(lambda: record_config(config.folder, config, step) if first else None)
    if trainer.finished and (summary := parallel.agree(lambda: _last_summary(config))):
        if first:
            print(summary_table(summary))
            print(f"{config.folder} is finished: nothing left to do")
        return None
    if not trainer.fit():
        # For a job script, which sees only torchrun's exit code.
        stopped = {"step": trainer.state.step}
        parallel.agree(lambda: commands.write_json(str(stop_file), stopped) if first else None)
        return trainer.told
    summary = write_report(
        job,
        trainer.results,
        steps=trainer.state.step,
        images_seen=trainer.state.position,
        seconds=trainer.state.seconds,
        loss=trainer.state.last_loss,
    )
    if first:
        print(summary_table(summary))
        print(f"results and pictures are in {config.folder}")
        page = verification_page(config.folder)
        if page.is_file():
            print(f"report on the verification sets: {page}")
    return None


def _last_summary(config: Config) -> dict[str, Any] | None:
    """The summary of a finished run, unless it is absent or damaged: then it is made again."""
    path = config.folder / "summary.json"
    if not path.is_file():
        return None
    try:
        return read_summary(path)
    except ValueError as error:
        logging.getLogger("kappaface_dist").warning("%s; it is made again", error)
        return None


if __name__ == "__main__":
    commands.run(main)
