"""Make a verification set (.bin) from a folder with a folder of images per identity.

    python tools/make_pairs.py FOLDER OUT.bin
    python tools/make_pairs.py lfw OUT.bin --pairs pairs.txt

Without --pairs: every pair of images of one identity, and as many pairs of different identities,
drawn with --seed; the two kinds alternate. With --pairs: the pairs of that list, in LFW's format
(its first line is "folds pairs-of-each-kind-per-fold"). Where its order would leave a tenth of the
pairs with one kind only, the kinds are written in turn.
OUT.bin.identities.json says who is in the pictures, for reports, for intervals over people and for
evaluate.py --groups. Images are stored as JPEG of --image-size; a JPEG that has this size is stored
as it is. Pairs with an unreadable image are left out, and said.
"""

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.data.prepare.make_record import prepare
from kappaface_dist.data.sources.base import list_dataset
from kappaface_dist.evaluation.sets.pair_file import write_pairs
from kappaface_dist.evaluation.sets.pair_lists import (
    all_pairs,
    images_by_identity,
    in_folds,
    listed_pairs,
)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="folder with a folder per identity")
    parser.add_argument("out", metavar="OUT.bin", help="file to write")
    parser.add_argument("--pairs", metavar="FILE", help="list of pairs in LFW's format")
    options.add_image_size(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the different pairs' drawing")
    options.add_json(parser)
    args = parser.parse_args()
    if args.image_size < 1:
        raise ValueError(f"--image-size is {args.image_size}, expected 1 or more")

    identities = images_by_identity(args.folder)
    if args.pairs is not None:
        pairs, remark = in_folds(listed_pairs(args.pairs, identities))
    else:
        pairs, remark = all_pairs(identities, args.seed), ""
    for name, why in list_dataset(Path(args.folder)).left_out:
        print(f"left out: {name}: {why}", file=sys.stderr)
    owner = {path: name for name, paths in identities.items() for path in paths}
    used = dict.fromkeys(path for first, second, _ in pairs for path in (first, second))
    payloads = {}
    left_out: list[tuple[Path, str]] = []
    for path in tqdm(used, desc="images", unit=" images", disable=None):
        try:
            payloads[path] = prepare(path.read_bytes(), args.image_size)
        except (ValueError, OSError) as error:
            left_out.append((path, str(error)))
    num_wanted = len(pairs)
    pairs = [pair for pair in pairs if pair[0] in payloads and pair[1] in payloads]
    if not pairs:
        path, why = left_out[0]
        raise ValueError(f"none of {num_wanted} pairs is readable, for example {path}: {why}")
    for path, why in left_out:
        print(f"left out: {path}: {why}", file=sys.stderr)
    same = [flag for *_, flag in pairs]
    write_pairs(
        args.out,
        [payloads[path] for first, second, _ in pairs for path in (first, second)],
        same,
        names=[(owner[first], owner[second]) for first, second, _ in pairs],
    )
    people = {owner[path] for path in payloads}
    report: dict[str, Any] = {
        "identities": len(people),
        "images": len(payloads),
        "pairs": len(pairs),
        "same_pairs": sum(same),
        "pairs_left_out": num_wanted - len(pairs),
        "left_out": [{"image": str(path), "reason": why} for path, why in left_out],
    }
    if len(people) < len(identities):
        report["identities_in_folder"] = len(identities)
    if remark:
        report["remark"] = remark
    if args.json != "-":
        print(
            f"{args.out}: {len(pairs)} pairs ({sum(same)} same) of {len(payloads)} images of"
            f" {len(people)} identities, of {len(identities)} in the folder"
            + (f"; {num_wanted - len(pairs)} pairs left out" if left_out else "")
        )
    if remark:
        print(remark, file=sys.stderr if args.json == "-" else sys.stdout)
    write_json(args.json, report)


if __name__ == "__main__":
    run(main)
