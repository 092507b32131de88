"""Cut aligned 112 x 112 faces out of photos, by five landmarks each.

The landmarks come from a file with lines "photo x1 y1 x2 y2 x3 y3 x4 y4 x5 y5" (eye, eye, nose,
corners of the mouth, left to right in the picture; photos relative to the folder), or from a
detector: a YuNet model file for OpenCV. The results keep the photos' folders, and make_record.py
reads them. --sheet draws the crops, with the doubtful ones first: no face found, a low score,
several faces, points that do not fit a face, eyes that were magnified.
Examples:
  python tools/align_faces.py photos aligned --landmarks landmarks.txt
  python tools/align_faces.py photos aligned --detector face_detection_yunet_2023mar.onnx \\
      --choose central --fallback centre --sheet crops.png
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kappaface_dist import commands, options
from kappaface_dist.data.images import decode_picture
from kappaface_dist.data.prepare.align_photos import (
    FALLBACKS,
    Aligned,
    align_photos,
    detected_photos,
    listed_photos,
)
from kappaface_dist.data.prepare.landmarks import CHOICES
from kappaface_dist.data.prepare.sheet import contact_sheet

MAX_TILES = 300


def main() -> None:
    args = parse_args()
    if not args.photos.is_dir():
        raise ValueError(f"there is no folder {args.photos}: name the one that holds the photos")
    if args.image_size < 1:
        raise ValueError(f"--image-size is {args.image_size}, expected 1 or more")
    if args.landmarks:
        photos = listed_photos(args.photos, args.landmarks)
    else:
        photos = detected_photos(args.photos, args.detector, args.choose)
    aligned, left_out = align_photos(
        args.photos,
        args.out,
        photos,
        image_size=args.image_size,
        fallback=args.fallback,
        progress=lambda names: tqdm(names, unit=" photos", dynamic_ncols=True, disable=None),
    )
    aligned.sort(key=lambda each: each.doubtfulness)
    without = [each for each in aligned if not each.found]
    doubtful = [each for each in aligned if each.found and each.doubts]
    for name, reason in left_out:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    for each in without:
        print(f"no face, the middle was taken: {each.name}", file=sys.stderr)
    print(
        f"{args.out}: {len(aligned) - len(without)} faces aligned, {len(doubtful)} of them"
        f" doubtful; {len(without)} photos without a face cut in the middle, {len(left_out)} left"
        " out",
        file=sys.stderr if args.json == "-" else sys.stdout,
    )
    if args.sheet:
        draw_sheet(args.sheet, aligned)
    commands.write_json(args.json, report(aligned, left_out))


def parse_args() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    parser.add_argument("photos", type=Path, help="folder")
    parser.add_argument("out", type=Path, help="folder for the results")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--landmarks", type=Path, metavar="FILE")
    source.add_argument("--detector", type=Path, metavar="ONNX", help="a YuNet model")
    parser.add_argument(
        "--choose",
        choices=CHOICES,
        default="largest",
        help="which of several detected faces: the largest, the one nearest to the middle, or the"
        " one of the best score (default: %(default)s)",
    )
    parser.add_argument(
        "--fallback",
        choices=FALLBACKS,
        default="skip",
        help="what becomes of a photo in which no face is found: it is left out, or the square in"
        " its middle is taken, so that a list of pairs can still be run (default: %(default)s)",
    )
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw the crops to look at")
    options.add_image_size(parser, "height and width of the crops")
    options.add_json(parser)
    return parser.parse_args()


def draw_sheet(path: Path, aligned: list[Aligned]) -> None:
    """The first crops of the list, each with its doubts and its photo."""
    tiles = []
    for each in aligned[:MAX_TILES]:
        score = "" if each.score is None else f"score {each.score:.2f}"
        tiles.append(
            (decode_picture(each.target.read_bytes()), [", ".join(each.doubts) or score, each.name])
        )
    if not tiles:
        print(f"{path} is not drawn: there is no crop", file=sys.stderr)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(tiles).save(path)
    if len(aligned) > MAX_TILES:
        print(f"{path} shows the first {MAX_TILES} of {len(aligned)} crops", file=sys.stderr)


def report(aligned: list[Aligned], left_out: list[tuple[str, str]]) -> dict[str, Any]:
    """What became of the photos, ready for JSON."""
    return {
        "num_aligned": sum(each.found for each in aligned),
        "fallback": [each.name for each in aligned if not each.found],
        "doubtful": [
            {"photo": each.name, "score": each.score, "doubts": list(each.doubts)}
            for each in aligned
            if each.found and each.doubts
        ],
        "left_out": [{"photo": name, "reason": reason} for name, reason in left_out],
    }


if __name__ == "__main__":
    commands.run(main)
