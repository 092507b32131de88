"""Write a dataset anew as .rec, .tar (WebDataset), .parquet (Hugging Face) or a folder.

Examples:
  python tools/convert_record.py photos train.rec --repair
  python tools/convert_record.py train.rec shards/faces.tar --shards 64
  python tools/convert_record.py gaps.rec train.rec --renumber --drop-label=-1
  python tools/convert_record.py train.rec clean.rec --drop overlap/drop_train.tsv
  python tools/convert_record.py train.rec clean.rec --clean runs/NAME/labels/labels.json
"""

import sys
from pathlib import Path

from kappaface_dist import commands, options
from kappaface_dist.data.prepare.clean import WRONG, clean_catalog
from kappaface_dist.data.prepare.convert import convert
from kappaface_dist.data.prepare.drop_list import read_drop_list
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
    parser.add_argument(
        "--drop",
        type=Path,
        metavar="FILE",
        help="leave out the classes that a list of find_overlap.py names, and renumber",
    )
    parser.add_argument(
        "--clean",
        type=Path,
        metavar="REPORT",
        help="leave out the images and join the classes that a labels.json of label_report.py"
        " lists, and renumber",
    )
    options.add_json(parser)
    args = parser.parse_args()
    if args.drop and args.clean:
        parser.error("--drop and --clean: one at a time, as a class that --clean joins is no more")
    listed = set(read_drop_list(args.drop) if args.drop else []) - set(args.drop_label)
    drop_labels = [*args.drop_label, *sorted(listed)]

    catalog = open_catalog(
        args.data if len(args.data) > 1 else args.data[0],
        any_labels=args.renumber or bool(drop_labels),
    )
    if args.clean is not None:
        cleaned = clean_catalog(catalog, args.clean)
        catalog = cleaned.catalog
        drop_labels += [WRONG] if cleaned.num_wrong else []
        for joined, kept in cleaned.joined:
            print(f"joined: class {joined} becomes part of class {kept}", file=sys.stderr)
    report = convert(
        catalog,
        args.out,
        shards=args.shards,
        repair=args.repair,
        renumber=args.renumber or args.clean is not None,
        drop_labels=list(dict.fromkeys(drop_labels)),
        progress=commands.image_progress(),
    )
    for where, why in [*report.dropped, *report.left_out.listed]:
        print(f"left out: {where}: {why}", file=sys.stderr)
    for label in args.drop_label:
        count = report.with_dropped_labels[label]
        print(f"left out: {count} images with label {label}", file=sys.stderr)
    if args.drop:
        count = sum(report.with_dropped_labels[label] for label in listed)
        print(f"left out: {count} images of {len(listed)} classes in {args.drop}", file=sys.stderr)
    if args.clean and WRONG in report.with_dropped_labels:
        count = report.with_dropped_labels[WRONG]
        print(f"left out: {count} images listed in {args.clean}", file=sys.stderr)
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
            "dropped_labels": {
                label: count
                for label, count in report.with_dropped_labels.items()
                if label != WRONG
            },
            "wrong_labels": report.with_dropped_labels.get(WRONG, 0),
            "left_out": dict(report.left_out.counts),
            "label_of_class": report.label_of,
        },
    )


if __name__ == "__main__":
    commands.run(main)
