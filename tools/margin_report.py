"""Show what KappaFace made of a run's classes: margins, concentrations, the hardest and easiest.

    python tools/margin_report.py runs/NAME
    python tools/margin_report.py runs/NAME/checkpoints/step_00001000 --embed 20000

Writes report.md, margins.png (margin against images of the class), concentrations.png (now, and
over the training from metrics.jsonl), reliability.png (how well two sets of photos of one person
agree, and how far a concentration may be off) and identities.png (sample images) to RUN/margins/.

report.md also says which estimate from few photos ranks the classes as their other photos do.

For the reliability the checkpoint's network embeds photos of its own training data, --embed of them
at most. They have been trained on, so their concentrations are higher than new photos' would be.
"""

from pathlib import Path

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.margin_study.estimates import compare_estimates
from kappaface_dist.margin_study.margin_page import summary_text, write_page
from kappaface_dist.margin_study.margin_pictures import draw_pictures
from kappaface_dist.margin_study.margin_report import margin_summary, read_measures
from kappaface_dist.margin_study.reliability import embed_classes, noise_share, reliability


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("path", type=Path, metavar="RUN|CHECKPOINT")
    parser.add_argument("--train", metavar="PATH", help="the run's data, if it has moved")
    parser.add_argument("--dataset", default="", metavar="NAME", help="which, of a run of several")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN/margins")
    parser.add_argument(
        "--embed",
        type=options.count,
        default=2000,
        metavar="IMAGES",
        help="photos to embed for the reliability; 0: leave it out (default: %(default)s)",
    )
    options.add_json(parser)
    args = parser.parse_args()
    classes = read_measures(args.path, args.train, args.dataset)
    rows, estimates = [], []
    if args.embed:
        embedded = embed_classes(classes, args.embed)
        rows = reliability(embedded, classes.margin.estimator, classes.margin.max_resultant)
        estimates = compare_estimates(embedded, classes.count_C)
    summary = margin_summary(classes)
    summary["reliability"] = {
        "embedded": len(embedded.label_I) if args.embed else 0,
        "by_images": rows,
        "estimates": estimates,
        "noise_share": noise_share(rows, classes),
    }
    folder = args.out or classes.folder.resolve().parents[1] / "margins" / args.dataset
    drawn = draw_pictures(folder, classes, rows)
    write_page(folder, summary, drawn)
    summary["pictures"] = [str(path) for path in drawn]
    if args.json != "-":
        print(summary_text(summary) + "\n" + "\n".join(summary["pictures"]))
    write_json(args.json, summary)


if __name__ == "__main__":
    run(main)
