"""Verify an exported backbone on sets of pairs.

    python tools/evaluate.py runs/NAME/export/backbone.safetensors --set lfw=lfw.bin
    torchrun --nproc_per_node=8 tools/evaluate.py MODEL --set lfw=lfw.bin --set cfp_fp=cfp_fp.bin

The processes of torchrun share the images of each set; the numbers do not depend on how many.
"""

import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from kappaface_dist import parallel
from kappaface_dist.backbones.export import load_backbone
from kappaface_dist.commands import run, write_json
from kappaface_dist.data.pair_file import read_pairs
from kappaface_dist.evaluation.pairs import PairResult, evaluate_pairs, pixel_baseline
from kappaface_dist.evaluation.plots import plot_roc


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="exported backbone (.safetensors)")
    parser.add_argument(
        "--set",
        dest="sets",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="verification set (.bin); repeat for several",
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="IMAGES")
    parser.add_argument("--plot", metavar="PATH", help="draw the sets' ROC curves into this file")
    parser.add_argument("--json", metavar="PATH|-", help="write the numbers as JSON")
    args = parser.parse_args()
    paths = _named_paths(args.sets)
    if args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}, expected 1 or more")

    device = parallel.start()
    model, settings = parallel.agree(lambda: load_backbone(args.model))
    model.to(device)
    results: dict[str, PairResult] = {}
    pixels: dict[str, float | None] = {}
    for name, path in paths.items():
        pairs = parallel.agree(partial(read_pairs, path))
        silent = True if parallel.rank() else None
        with tqdm(desc=name, unit=" images", disable=silent, leave=False) as bar:
            results[name] = evaluate_pairs(
                model,
                pairs,
                image_size=settings.image_size,
                batch_size=args.batch_size,
                device=device,
                progress=bar.update,
            )
        if parallel.rank() == 0:
            pixels[name] = pixel_baseline(pairs)
    report = {
        "model": args.model,
        "backbone": settings.name,
        "sets": {name: result.summary() for name, result in results.items()},
        "baselines": {"pixels": pixels},
    }

    def publish() -> None:
        if args.json != "-":
            print(_table(results, pixels))
        write_json(args.json, report)
        if args.plot:
            plot_roc(args.plot, {name: r.roc for name, r in results.items() if r.roc is not None})

    parallel.agree(lambda: publish() if parallel.rank() == 0 else None)
    parallel.stop()


def _named_paths(sets: list[str]) -> dict[str, Path]:
    paths = {}
    for text in sets:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--set is {text!r}, expected NAME=PATH, as in lfw=data/lfw.bin")
        if name in paths:
            raise ValueError(f"--set names {name!r} twice, expected each name once")
        paths[name] = Path(path)
    return paths


def _table(results: dict[str, PairResult], pixels: dict[str, float | None]) -> str:
    rates = ["1e-1", "1e-2", "1e-3", "1e-4"]
    rows = [["set", "pairs", "accuracy", "AUC", *(f"TAR@{rate}" for rate in rates), "pixels"]]
    for name, result in results.items():
        accuracy = "-"
        if result.accuracy is not None and result.accuracy_std is not None:
            accuracy = f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f} %"
        rows.append(
            [
                name,
                str(result.num_pairs),
                accuracy,
                _percent(result.auc),
                *(_percent(result.tar_at_far[rate]) for rate in rates),
                _percent(pixels[name]),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines += [f"{name}: {result.note}" for name, result in results.items() if result.note]
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


if __name__ == "__main__":
    run(main)
