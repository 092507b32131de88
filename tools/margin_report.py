"""Show what KappaFace made of a run's classes: margins, concentrations, the hardest and easiest.

    python tools/margin_report.py runs/NAME
    python tools/margin_report.py runs/NAME/checkpoints/step_00001000 --embed 20000

Writes report.md, margins.png (margin against images of the class), concentrations.png (now, and
over the training from metrics.jsonl), reliability.png (how well two sets of photos of one person
agree, and how far a concentration may be off), hard_or_dirty.png (concentration with and without
the photos that are probably another's) and identities.png (sample images, those framed in red) to
RUN/margins/.

report.md also says which estimate from few photos ranks the classes as their other photos do, and
of the hardest classes whether they are hard or dirty: how many of their photos probably sit in
another class or are a second person's, by tools/label_report.py's judgement of what is embedded,
and how concentrated the others are.

For all this the checkpoint's network embeds photos of its own training data, --embed of them at
most, and those of the hardest classes. They have been trained on, so their concentrations are
higher than new photos' would be, and labels that were learnt by heart do not look wrong.
"""

from pathlib import Path

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.margin_study.estimates import compare_estimates
from kappaface_dist.margin_study.hard_or_dirty import judge_classes
from kappaface_dist.margin_study.margin_page import summary_text, write_page
from kappaface_dist.margin_study.margin_pictures import draw_pictures
from kappaface_dist.margin_study.margin_report import (
    NUM_SHOWN,
    hardest,
    margin_summary,
    read_measures,
)
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
        help="photos to embed, besides those of the hardest classes, for the reliability and wrong"
        " labels; 0: leave both out (default: %(default)s)",
    )
    options.add_json(parser)
    args = parser.parse_args()
    classes = read_measures(args.path, args.train, args.dataset)
    rows, estimates, noise, num_drawn = [], [], None, 0
    if args.embed:
        shown = hardest(classes, NUM_SHOWN)
        embedded, num_drawn = embed_classes(classes, args.embed, shown)
        drawn_ones, limit = embedded.first(num_drawn), classes.margin.max_resultant
        rows = reliability(drawn_ones, classes.margin.estimator, limit)
        estimates = compare_estimates(drawn_ones, classes.count_C)
        noise = judge_classes(embedded, limit)
    summary = margin_summary(classes)
    summary["reliability"] = {
        "embedded": num_drawn,
        "by_images": rows,
        "estimates": estimates,
        "noise_share": noise_share(rows, classes),
    }
    if noise is not None:
        summary["noise"] = noise.summary()
    folder = args.out or classes.folder.resolve().parents[1] / "margins" / args.dataset
    drawn = draw_pictures(folder, classes, rows, noise)
    write_page(folder, summary, drawn)
    summary["pictures"] = [str(path) for path in drawn]
    if args.json != "-":
        print(summary_text(summary) + "\n" + "\n".join(summary["pictures"]))
    write_json(args.json, summary)


if __name__ == "__main__":
    run(main)
