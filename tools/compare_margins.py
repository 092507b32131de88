"""Compare margins: same data, seeds and budget, verified on people who were not trained on.

    python tools/compare_margins.py --seeds 3 --quick
    python tools/compare_margins.py --seeds 8 --train data/mine/train.rec --pairs data/mine/lfw.bin

Arms: ArcFace with KappaFace's mean margin over classes (arcface: what the others are compared to)
and over training images (arcface_by_image), KappaFace as we have it, with the plug-in estimate, as
released, with its margins shuffled over the classes, with the number of images alone, with the
statistic target_cosine, and over a memory or a momentum encoder, by our formula (memory, encoder)
and by the released one (released_memory, released_encoder); ArcFace at 0.5 with its exact gradient
(exact) and with that of trainers that apply the margin outside autograd (straight_through). The
KappaFace arm of a seed is trained first and gives the ArcFace arms of that seed their margin. A
seed decides the first weights and the order of the images; the data is the same for all, so an
interval is about chance in training, not about other people, whom --data-seed renders.

Without --train, made-up people are rendered, whose difficulty does not depend on their number of
images (2 to 60). `small` are those pairs that look like small classes: by a network of its own,
trained without a margin, the training classes nearest to them have the fewest images (the lowest
third of the same and of the different pairs).

Differences are paired by seed: each with its 95 % interval, with one that holds for all arms
together (Bonferroni), and with the smallest difference that such an interval would have shown.

    python tools/compare_margins.py --seeds 16 --train lfw/train.rec --pairs lfw/unseen.bin \\
        --arms straight_through --reference exact --arm slow:name=arcface,margin=0.3,lr=0.05

With --flip, of the labels of the training images so large a share is another person's, drawn anew
for each seed, and with --mixed classes are two people or half a person. The arms are then KappaFace
on these labels (the reference), without what the label report by its network finds (cleaned), with
head.robust (robust: both; robust_loss, robust_statistics), and without all that is planted (truth),
each in as many steps. What the reports found is counted.

    python tools/compare_margins.py --quick --seeds 5 --flip 0.1 --mixed 0.05

Every finished training is kept in --out: the same command goes on where it was, and with more
seeds it adds those.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.margin_study.arms import REFERENCE, SOURCE, choose_arms
from kappaface_dist.margin_study.dataset import ARRAYS, decode_dataset, render_people
from kappaface_dist.margin_study.planted_noise import Noise
from kappaface_dist.margin_study.report import comparison_table, draw_comparison, draw_losses
from kappaface_dist.margin_study.schedule import Experiment, collect, run_experiment
from kappaface_dist.margin_study.settings import check_settings
from kappaface_dist.margin_study.training import Budget, check_budget
from kappaface_dist.parallel.cores import num_cores
from kappaface_dist.parallel.ranks import own_device

QUICK = Budget(embedding_size=64, image_size=32, batch_size=32, epochs=6.0, scale=16.0)
BUDGET_OPTIONS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "backbone": (str, "NAME", "as in configurations"),
    "embedding_size": (options.count, "NUMBERS", "of an embedding"),
    "image_size": (options.count, "PIXELS", "that the network sees"),
    "batch_size": (options.count, "IMAGES", "of a step"),
    "epochs": (float, "N", "passes over the data"),
    "lr": (float, "X", "peak learning rate"),
    "scale": (float, "S", "of the logits"),
}


def parse_args() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="per arm (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer people, pixels and epochs")
    parser.add_argument("--train", metavar="PATH", help="a dataset, instead of made-up people")
    parser.add_argument("--pairs", type=Path, metavar="PATH", help=".bin of other people, for it")
    parser.add_argument(
        "--long-tail", type=int, metavar="N", help="thin out its classes, down to N images"
    )
    options.add_identities(parser, None, "made-up people to train on (550, quick: 150)")
    options.add_unseen_identities(parser, None, "made-up people to verify on (200)", "--unseen")
    parser.add_argument(
        "--flip", type=float, metavar="SHARE", help="images that get a wrong label, 0 to 0.5"
    )
    parser.add_argument(
        "--mixed", type=float, metavar="SHARE", help="classes that are joined or split, for --flip"
    )
    parser.add_argument("--data-seed", type=int, default=0, help="another seed, other people")
    parser.add_argument(
        "--arms", metavar="A,B", help="only these, and what they are compared to; none: --arm alone"
    )
    parser.add_argument(
        "--reference", help=f"what all are compared to (default: {REFERENCE}, --flip: {SOURCE})"
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,...",
        help="a further arm: KappaFace with these settings, or name=ANOTHER with its own; lr=X is"
        " its learning rate; centre_dtype, momentum_dtype, robust, sub_centres are its head's",
    )
    for name, (kind, metavar, text) in BUDGET_OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        values = f"{getattr(Budget(), name)}, quick: {getattr(QUICK, name)}"
        parser.add_argument(option, type=kind, metavar=metavar, help=f"{text} ({values})")
    options.add_device(parser)
    parser.add_argument(
        "--processes", type=int, help="trainings side by side (default: every core, one on cuda)"
    )
    parser.add_argument(
        "--out", type=Path, help="default: runs/compare_margins, and _quick, _flip_SHARE"
    )
    options.add_json(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if int(os.environ.get("RANK", "0")) > 0:
        return  # under torchrun the first process starts as many workers as there are ranks
    experiment, processes = make_experiment(args)
    prepare_data(args, experiment, processes)
    with tqdm(desc="trainings", unit="", mininterval=1.0, disable=None) as bar:
        bar.total = len(experiment.arms) * experiment.num_seeds + 1

        def progress(line: str) -> None:
            bar.update()
            bar.set_postfix_str(line)
            if bar.disable:  # no terminal: a line for each
                print(line, file=sys.stderr, flush=True)

        num_trained = run_experiment(experiment, processes, progress)
    report = {
        "kept": bar.total - num_trained,
        "budget": asdict(experiment.budget),
        **collect(experiment),
    }
    draw_comparison(experiment.folder / "comparison.png", report)
    draw_losses(experiment.folder / "losses.png", report)
    write_json(str(experiment.folder / "comparison.json"), report)
    write_json(args.json, report)
    if args.json != "-":
        print(comparison_table(report))
        print(f"pictures, numbers and results of each training: {experiment.folder}")


def make_experiment(args: argparse.Namespace) -> tuple[Experiment, int]:
    """What the options ask for; ValueError where they contradict each other."""
    if (args.train is None) != (args.pairs is None):
        raise ValueError("--train and --pairs belong together: give both, or neither")
    if args.long_tail is not None and args.train is None:
        raise ValueError("--long-tail is for --train: made-up people have a long tail already")
    if args.train is not None and (args.identities or args.unseen):
        raise ValueError(
            "--identities and --unseen-identities are for made-up people, not for --train"
        )
    device = own_device(args.device)
    processes = args.processes
    if processes is None:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
        processes = ranks or (1 if device.type == "cuda" else num_cores())
    for name, value in (("--seeds", args.seeds), ("--processes", processes)):
        if not 1 <= value <= 1024:
            raise ValueError(f"{name} is {value}, expected 1 to 1024")
    given = {name: getattr(args, name) for name in BUDGET_OPTIONS}
    start = QUICK if args.quick else Budget()
    budget = replace(start, **{k: v for k, v in given.items() if v is not None})
    check_budget(budget)
    if args.mixed is not None and args.flip is None:
        raise ValueError("--mixed is for --flip, which may be 0")
    noise = None if args.flip is None else Noise(args.flip, args.mixed or 0.0)
    parts = ["runs/compare_margins", "quick" * args.quick, noise and f"flip_{args.flip:g}"]
    folder = args.out or Path("_".join(part for part in parts if part))
    reference = args.reference or (SOURCE if noise else REFERENCE)
    arms = choose_arms(args.arms, args.arm, reference, noisy=noise is not None)
    return Experiment(folder, arms, args.seeds, budget, str(device), reference, noise), processes


def prepare_data(args: argparse.Namespace, experiment: Experiment, processes: int) -> None:
    """Render and decode, unless an earlier start has done it."""
    source: dict[str, Any]
    if args.train is None:
        source = {
            "identities": args.identities or (150 if args.quick else 550),
            "unseen": args.unseen or 200,
            "data_seed": args.data_seed,
        }
    else:
        source = {"train": args.train, "pairs": str(args.pairs), "long_tail": args.long_tail}
    source |= {"flip": args.flip, "mixed": args.mixed}
    check_settings(experiment.folder, {**source, **asdict(experiment.budget)}, experiment.arms)
    data = experiment.folder / "data"
    if all((data / f"{name}.npy").is_file() for name in ARRAYS):
        return
    train, pairs = args.train, args.pairs
    if train is None:
        train, pairs = render_people(
            experiment.folder / "people",
            num_identities=source["identities"],
            num_unseen=source["unseen"],
            seed=args.data_seed,
            processes=processes,
            progress=progress_bar,
        )
    decode_dataset(data, train, pairs, experiment.budget.image_size, args.long_tail)


def progress_bar(items: Iterable[Any], total: int) -> Iterable[Any]:
    return tqdm(items, total=total, desc="drawing faces", unit=" images", disable=None)


if __name__ == "__main__":
    run(main)
