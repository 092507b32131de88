"""Train: torchrun --nproc_per_node=8 launch/train.py configs/glint360k.yaml [key=value ...]"""

import argparse
import json
import os
import sys

import torch

from kappaface_dist import commands
from kappaface_dist.config.file import load_config, to_yaml
from kappaface_dist.config.keys import Config
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import build_job, derived_numbers
from kappaface_dist.training.run_log import start_logging
from kappaface_dist.training.summary import summary_table, write_report
from kappaface_dist.training.trainer import Trainer
from kappaface_dist.training.verification import verification_page
from kappaface_dist.whole_files import write_whole


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
    config = load_config(args.config, args.overrides)
    if args.print_config:
        if os.environ.get("RANK", "0") == "0":
            print(to_yaml(config), end="")
        return
    # The watchdog, which names the rank that hangs, comes first; the group ends what it cannot see.
    device = parallel.start(timeout_minutes=1.5 * config.run.timeout_minutes)
    stopped = train(config, device, check=args.check)
    parallel.stop()
    # torchrun takes any other code than 0 for a crash, and would start the run again at once.
    if stopped and "TORCHELASTIC_RUN_ID" not in os.environ:
        sys.exit(config.run.stop_exit_code)


def train(config: Config, device: torch.device, *, check: bool) -> bool:
    """Build the parts, fit, and write the report; whether a signal stopped it before its end."""
    if check:
        numbers = derived_numbers(build_job(config, device))
        if parallel.rank() == 0:
            print(json.dumps(numbers, indent=2))
        return False
    first = parallel.rank() == 0
    parallel.agree(lambda: start_logging(config.folder if first else None))
    stop_file = config.folder / "stopped.json"
    job = build_job(config, device)
    if first:
        stop_file.unlink(missing_ok=True)
        write_whole(config.folder / "config.yaml", to_yaml(config))
    trainer = Trainer(job)
    if trainer.finished and (config.folder / "summary.json").is_file():
        if first:
            print(summary_table(json.loads((config.folder / "summary.json").read_text())))
            print(f"{config.folder} is finished: nothing left to do")
        return False
    if not trainer.fit():
        if first:
            # For a job script, which sees only torchrun's exit code.
            commands.write_json(str(stop_file), {"step": trainer.state.step})
        return True
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
    return False


if __name__ == "__main__":
    commands.run(main)
