"""Write a folder of photos, one folder per identity, as OUT/train.rec, train.idx and property.

OUT/train.names has the name of each class, one a line, for the reports that say who.
If it is stopped, the same command goes on where it was.
Example: python tools/make_record.py photos data/mine
"""

import argparse
import sys
from pathlib import Path

from kappaface_dist import commands, options
from kappaface_dist.data.prepare.make_record import make_record
from kappaface_dist.data.sources.base import LeftOut
from kappaface_dist.parallel.cores import num_cores


def parse_args() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        help="holds a folder of images per identity, which may lie in folders inside it",
    )
    parser.add_argument("out", type=Path, help="folder for the result, made if absent")
    options.add_image_size(
        parser,
        "height and width of the images written; upright JPEGs that have it already are copied as"
        " they are, others are resized and encoded anew",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=num_cores(),
        help="that read, resize and encode; the result is the same (default: every core)",
    )
    parser.add_argument(
        "--shards",
        type=int,
        default=1,
        help='record files to write, named train-00000-of-00008.rec; train on them with "OUT/*.rec"'
        " (default: one, train.rec)",
    )
    options.add_json(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    report = make_record(
        args.folder,
        args.out,
        image_size=args.image_size,
        processes=args.processes,
        shards=args.shards,
        progress=commands.image_progress(),
    )
    for path, reason in report.unreadable:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    for path, reason in report.ignored:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    if report.num_resumed:
        print(f"{report.num_resumed} files were done by an earlier run", file=sys.stderr)
    written = str(report.records[0]) if len(report.records) == 1 else f"{args.out}/*.rec"
    summary = (
        f"{written}: {report.num_images} images of {len(report.class_names)}"
        f" identities; left out: {len(report.unreadable)} unreadable,"
        f" {LeftOut.of(report.ignored)}"
    )
    print(summary, file=sys.stderr if args.json == "-" else sys.stdout)
    commands.write_json(
        args.json,
        {
            "record": str(report.records[0]),
            "records": [str(path) for path in report.records],
            "num_images": report.num_images,
            "num_classes": len(report.class_names),
            "image_size": args.image_size,
            "classes": [
                {"name": name, "images": count}
                for name, count in zip(report.class_names, report.count_C, strict=True)
            ],
            "unreadable": [{"file": path, "reason": why} for path, why in report.unreadable],
            "ignored": [{"file": path, "reason": why} for path, why in report.ignored],
        },
    )


if __name__ == "__main__":
    commands.run(main)
