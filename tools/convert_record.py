"""Write a dataset anew as .rec, .tar (WebDataset), .parquet (Hugging Face) or a folder.

Examples:
  python tools/convert_record.py photos train.rec --repair
  python tools/convert_record.py train.rec shards/faces.tar --shards 64
"""

import sys
from pathlib import Path

from kappaface_dist import commands
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
    parser.add_argument("--json", metavar="PATH", help="write a report as JSON, - for stdout")
    args = parser.parse_args()

    catalog = open_catalog(args.data if len(args.data) > 1 else args.data[0])
    report = convert(
        catalog,
        args.out,
        shards=args.shards,
        repair=args.repair,
        progress=commands.image_progress(),
    )
    for where, why in report.dropped:
        print(f"left out: {where}: {why}", file=sys.stderr)
    print(
        f"{', '.join(map(str, report.files[:3]))}{' ...' if len(report.files) > 3 else ''}:"
        f" {report.num_images} images; {report.num_mended} mended, {len(report.dropped)} left out",
        file=sys.stderr if args.json == "-" else sys.stdout,
    )
    commands.write_json(
        args.json,
        {
            "files": [str(path) for path in report.files],
            "num_images": report.num_images,
            "num_mended": report.num_mended,
            "dropped": [{"where": where, "reason": why} for where, why in report.dropped],
        },
    )


if __name__ == "__main__":
    commands.run(main)
