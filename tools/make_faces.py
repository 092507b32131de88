"""Render made-up identities: a training record, pairs of others to verify on, a sheet to look at.

python tools/make_faces.py data/faces --json data/faces/summary.json
"""

import argparse
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from kappaface_dist import commands, options
from kappaface_dist.made_up_faces.dataset import write_faces
from kappaface_dist.parallel.cores import num_cores


def parse_args() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    parser.add_argument(
        "out", help="folder for train.rec, train.idx, property, unseen.bin and sheet.png"
    )
    options.add_identities(parser, 550, "people in the record")
    options.add_unseen_identities(
        parser, 120, "people in the verification pairs, none of them in the record"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other people")
    options.add_image_size(parser)
    parser.add_argument(
        "--processes",
        type=int,
        default=num_cores(),
        help="processes that draw; the result is the same for any number (default: every core)",
    )
    options.add_json(parser)
    return parser.parse_args()


def progress_bar(items: Iterable[Any], total: int) -> Iterable[Any]:
    return tqdm(items, total=total, desc="drawing faces", unit=" images", disable=None)


def main() -> None:
    args = parse_args()
    summary = write_faces(
        args.out,
        num_identities=args.identities,
        num_unseen=args.unseen_identities,
        seed=args.seed,
        image_size=args.image_size,
        processes=args.processes,
        progress=progress_bar,
    )
    commands.write_json(args.json, summary)
    if args.json != "-":
        print(
            f"{args.out}: {summary['images']} images of {summary['identities']} identities,"
            f" {summary['pairs']} pairs of {summary['unseen_identities']} others; look at sheet.png"
        )


if __name__ == "__main__":
    commands.run(main)
