"""Show what KappaFace made of a run's classes: margins, concentrations, the hardest and easiest.

    python tools/margin_report.py runs/NAME
    python tools/margin_report.py runs/NAME/checkpoints/step_00001000

Writes report.md, margins.png (margin against images of the class), concentrations.png (now, and
over the training from metrics.jsonl) and identities.png (sample images) to RUN/margins/.
"""

from pathlib import Path

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.margin_study.margin_page import summary_text, write_page
from kappaface_dist.margin_study.margin_pictures import draw_pictures
from kappaface_dist.margin_study.margin_report import margin_summary, read_measures


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("path", type=Path, metavar="RUN|CHECKPOINT")
    parser.add_argument("--train", metavar="PATH", help="the run's data, if it has moved")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN/margins")
    options.add_json(parser)
    args = parser.parse_args()
    classes = read_measures(args.path, args.train)
    summary = margin_summary(classes)
    folder = args.out or classes.folder.resolve().parents[1] / "margins"
    drawn = draw_pictures(folder, classes)
    write_page(folder, summary, drawn)
    summary["pictures"] = [str(path) for path in drawn]
    if args.json != "-":
        print(summary_text(summary) + "\n" + "\n".join(summary["pictures"]))
    write_json(args.json, summary)


if __name__ == "__main__":
    run(main)
