"""Write a dataset anew as .rec, .tar (WebDataset), .parquet (Hugging Face) or a folder.

Examples:
  python tools/convert_record.py photos train.rec --repair
  python tools/convert_record.py train.rec shards/faces.tar --shards 64
  python tools/convert_record.py gaps.rec train.rec --renumber --drop-label=-1
"""

import sys
from pathlib import Path

from kappaface_dist import commands, options
from kappaface_dist.data.prepare.convert import convert
from kappaface_dist.data.sources.catalog import open_catalog


def main() -> None:
    parser = commands.new_parser(__doc__)
    parser.add_argument(
        "data", nargs="+", help="record file(s), .tar, .parquet, .arrow, or a folder of identities"
    )
    parser.add_argument("out", type=Path, help="its ending chooses the kind; none for a folder")
    parser.add_argument("--shards", type=int, default=1, help="files to write (default: 1)")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="decode all images, add missing JPEG end markers, drop and list unreadable images",
    )
    parser.add_argument(
        "--renumber",
        action="store_true",
        help="number the labels that there are from 0 on; OUT.renumbered.tsv says which was which",
    )
    parser.add_argument(
        "--drop-label",
        type=int,
        action="append",
        default=[],
        metavar="LABEL",
        help="leave out the images with this label, and renumber; may be given several times",
    )
    options.add_json(parser)
    args = parser.parse_args()

    catalog = open_catalog(
        args.data if len(args.data) > 1 else args.data[0],
        any_labels=args.renumber or bool(args.drop_label),
    )
    report = convert(
        catalog,
        args.out,
        shards=args.shards,
        repair=args.repair,
        renumber=args.renumber,
        drop_labels=args.drop_label,
        progress=commands.image_progress(),
    )
    for where, why in [*report.dropped, *report.left_out.listed]:
        print(f"left out: {where}: {why}", file=sys.stderr)
    for label, count in report.with_dropped_labels.items():
        print(f"left out: {count} images with label {label}", file=sys.stderr)
    for number, (label, count) in enumerate(zip(report.label_of, report.count_C, strict=True)):
        if not count:
            print(f"class {number}, label {label} before, has no image left", file=sys.stderr)
    print(
        f"{', '.join(map(str, report.files[:3]))}{' ...' if len(report.files) > 3 else ''}:"
        f" {report.num_images} images; {report.num_mended} mended, {report.num_left_out} left out"
        + (f"; {report.numbers} says which class was which" if report.numbers else ""),
        file=sys.stderr if args.json == "-" else sys.stdout,
    )
    commands.write_json(
        args.json,
        {
            "files": [str(path) for path in report.files],
            "num_images": report.num_images,
            "num_mended": report.num_mended,
            "dropped": [{"where": where, "reason": why} for where, why in report.dropped],
            "dropped_labels": report.with_dropped_labels,
            "left_out": dict(report.left_out.counts),
            "label_of_class": report.label_of,
        },
    )


if __name__ == "__main__":
    commands.run(main)
