"""Evaluate a model on a template benchmark: IJB-B, IJB-C, or one of make_templates.py.

    python tools/evaluate_templates.py MODEL IJBC --json ijbc.json
    torchrun --nproc_per_node=8 tools/evaluate_templates.py MODEL IJBC --report ijbc_report

MODEL is an exported backbone, a checkpoint or a run folder; IJBC the folder that holds meta/ and
loose_crop/. The processes share the images. Embeddings stay in --cache and are used again while the
weights, the lists and every image are the same by their hashes. --report writes report.html with
its plots, and tables in Markdown and LaTeX.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.evaluation.embedding.store import StoredEmbeddings
from kappaface_dist.evaluation.reports.plots import plot_roc
from kappaface_dist.evaluation.reports.table_formats import as_text
from kappaface_dist.evaluation.reports.templates import write_template_report
from kappaface_dist.evaluation.sets.template_lists import TemplateSet, read_template_set
from kappaface_dist.evaluation.templates.benchmark import (
    TemplateResult,
    embed_template_images,
    evaluate_templates,
)
from kappaface_dist.evaluation.templates.pooling import Pooling
from kappaface_dist.models import command_line
from kappaface_dist.models.saved_model import SavedModel, model_facts, training_facts
from kappaface_dist.parallel import ranks as parallel


def main() -> None:
    args = parse_args()
    command_line.check_arguments(args)
    model, device = command_line.start(args)
    templates = parallel.agree(lambda: read_template_set(args.set))
    with command_line.image_bar(templates.name) as bar:
        stored = embed_template_images(
            model.network,
            templates,
            args.cache or Path(args.set) / "embeddings",
            digest=model.embeds_as,
            image_size=model.settings.image_size,
            batch_size=args.batch_size,
            device=device,
            flip=args.flip,
            progress=bar.update,
        )
    command_line.stop(lambda: publish(args, model, templates, stored, device))


def parse_args() -> argparse.Namespace:
    parser = new_parser(__doc__)
    command_line.add_model(parser)
    parser.add_argument("set", metavar="FOLDER", help="holds meta/ and loose_crop/")
    parser.add_argument("--cache", metavar="FOLDER", help="default: embeddings/ in the set")
    for name, text in (
        ("flip", "add the mirror image's embedding"),
        ("norm", "keep the embeddings' lengths when pooling"),
        ("detector-score", "weigh images by the detector's score"),
        ("average-media", "average a video's frames first"),
    ):
        parser.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, default=True, help=text
        )
    parser.add_argument("--plot", metavar="PATH", help="draw the ROC of 1:1 into this file")
    command_line.add_arguments(parser)
    return parser.parse_args()


def publish(
    args: argparse.Namespace,
    model: SavedModel,
    templates: TemplateSet,
    stored: StoredEmbeddings,
    device: torch.device,
) -> None:
    """Evaluate, and print and write everything that was asked for."""
    pooling = Pooling(args.norm, args.detector_score, args.average_media)
    result = evaluate_templates(
        stored, templates, pooling, device=device, num_replicates=args.bootstrap
    )
    facts = {
        "model": str(model.path),
        "weights_sha256": model.digest,
        "backbone": model.settings.name,
        "set": templates.name,
        "lists_sha256": templates.digest,
    }
    settings = {**vars(pooling), "flip": args.flip}
    if args.json != "-":
        print(f"{stored.num_reused} of {stored.count} embeddings were there already")
        print(_tables(templates.name, result))
    write_json(args.json, {**facts, "pooling": settings, **result.summary})
    if args.plot:
        curves = {} if result.curve is None else {templates.name: result.curve}
        plot_roc(args.plot, curves, "1:1 of templates")
    if args.report:
        facts = {
            **model_facts(model.path, model.digest, model.settings),
            **training_facts(model),
            "set": f"{Path(args.set).resolve()}, SHA-256 of its lists {templates.digest}",
            "pooling": ", ".join(f"{key.replace('_', ' ')}: {on}" for key, on in settings.items()),
        }
        page = write_template_report(
            Path(args.report),
            result,
            templates,
            title=f"{templates.name} by {model.settings.name}",
            facts=facts,
            config=model.config,
        )
        if args.json != "-":
            print(f"report: {page}")


def _tables(name: str, result: TemplateResult) -> str:
    one = result.summary["1:1"]
    rates = one.get("tar_at_far", {})
    rows = [["1:1", "pairs", "AUC", "EER", *(f"TAR@{rate}" for rate in rates)]]
    cells = [one.get("auc"), one.get("eer"), *rates.values()]
    rows.append([name, str(one["pairs"]), *map(_percent, cells)])
    lines = [as_text(rows), one["note"]]
    many: dict[str, Any] = result.summary.get("1:N", {})
    if many:
        first = next(iter(many.values()))
        header = [f"rank-{k}" for k in first["rank"]]
        header += [f"TPIR@{rate}" for rate in first["tpir_at_fpir"]]
        rows = [["1:N", *header]]
        for gallery, numbers in many.items():
            cells = [*numbers["rank"].values(), *numbers["tpir_at_fpir"].values()]
            rows.append([gallery, *map(_percent, cells)])
        lines.append(as_text(rows))
    return "\n".join(line for line in lines if line)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


if __name__ == "__main__":
    run(main)
