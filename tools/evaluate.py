"""Verify a model on sets of pairs.

    python tools/evaluate.py runs/NAME --set lfw=lfw.bin --report runs/NAME/evaluation
    torchrun --nproc_per_node=8 tools/evaluate.py MODEL --set lfw=lfw.bin --set cfp_fp=cfp_fp.bin

MODEL is an exported backbone (.safetensors, .onnx, .pt2) or a folder of those, a checkpoint
folder, or a run folder (its last checkpoint). The processes of torchrun share the images of each
set; the numbers do not depend on how many. --report writes report.html with its plots, and tables
in Markdown and LaTeX.
"""

import argparse
from pathlib import Path

from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.evaluation.reports.pair_set import SetReport, report_set
from kappaface_dist.evaluation.reports.pair_tables import text_table
from kappaface_dist.evaluation.reports.pairs import write_html_report
from kappaface_dist.evaluation.reports.plots import plot_roc
from kappaface_dist.models import command_line
from kappaface_dist.models.saved_model import SavedModel, model_facts, training_facts


def main() -> None:
    args = parse_args()
    paths = command_line.named_paths("--set", args.sets)
    groups = command_line.named_paths("--groups", args.groups)
    if unknown := groups.keys() - paths.keys():
        raise ValueError(
            f"--groups names {', '.join(sorted(unknown))}, expected a set of --set:"
            f" {', '.join(paths)}"
        )
    command_line.check_arguments(args)

    model, device = command_line.start(args)
    reports = {}
    for name, path in paths.items():
        with command_line.image_bar(name) as bar:
            reports[name] = report_set(
                model.network,
                path,
                image_size=model.settings.image_size,
                batch_size=args.batch_size,
                device=device,
                num_replicates=args.bootstrap,
                groups=groups.get(name),
                progress=bar.update,
            )
    command_line.stop(lambda: publish(args, model, reports))


def parse_args() -> argparse.Namespace:
    parser = new_parser(__doc__)
    command_line.add_model(parser)
    parser.add_argument(
        "--set",
        dest="sets",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="verification set (.bin); repeat for several",
    )
    parser.add_argument(
        "--groups",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help='groups of a set, lines "PERSON GROUP" or "IMAGE-NUMBER GROUP": errors by group',
    )
    parser.add_argument("--plot", metavar="PATH", help="draw the sets' ROC curves into this file")
    command_line.add_arguments(parser)
    return parser.parse_args()


def publish(args: argparse.Namespace, model: SavedModel, reports: dict[str, SetReport]) -> None:
    """Print and write everything that was asked for."""
    if args.json != "-":
        print(text_table(reports))
    facts = {
        "model": str(model.path),
        "weights_sha256": model.digest,
        "backbone": model.settings.name,
    }
    report = {
        **facts,
        "sets": {name: report.summary() for name, report in reports.items()},
        "baselines": {"pixels": {name: report.pixels for name, report in reports.items()}},
    }
    write_json(args.json, report)
    if args.plot:
        curves = {name: r.result.roc for name, r in reports.items() if r.result.roc is not None}
        plot_roc(args.plot, curves)
    if args.report:
        page = write_html_report(
            Path(args.report),
            reports,
            title=f"Verification of {model.settings.name}",
            facts={
                **model_facts(model.path, model.digest, model.settings),
                **training_facts(model),
            },
            config=model.config,
        )
        if args.json != "-":
            print(f"report: {page}")


if __name__ == "__main__":
    run(main)
