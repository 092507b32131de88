"""Cut aligned 112 x 112 faces out of photos, by five landmarks each.

The landmarks come from a file with lines "photo x1 y1 x2 y2 x3 y3 x4 y4 x5 y5" (eye, eye, nose,
corners of the mouth, left to right in the picture; photos relative to the folder), or from a
detector: a YuNet model file for OpenCV. The results keep the photos' folders, and make_record.py
reads them.
Examples:
  python tools/align_faces.py photos aligned --landmarks landmarks.txt
  python tools/align_faces.py photos aligned --detector face_detection_yunet_2023mar.onnx
"""

import sys
from pathlib import Path

from tqdm import tqdm

from kappaface_dist import commands
from kappaface_dist.data.prepare.align_photos import align_photo, detected_photos, listed_photos


def main() -> None:
    parser = commands.new_parser(__doc__)
    parser.add_argument("photos", type=Path, help="folder")
    parser.add_argument("out", type=Path, help="folder for the results")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--landmarks", type=Path, metavar="FILE")
    source.add_argument("--detector", type=Path, metavar="ONNX", help="the largest face is taken")
    parser.add_argument("--image-size", type=int, default=112, help="in pixels (default: 112)")
    parser.add_argument("--json", metavar="PATH", help="write a report as JSON, - for stdout")
    args = parser.parse_args()
    if not args.photos.is_dir():
        raise ValueError(f"there is no folder {args.photos}: name the one that holds the photos")

    if args.landmarks:
        photos = listed_photos(args.landmarks)
    else:
        photos = detected_photos(args.photos, args.detector)
    num_aligned, left_out = 0, []
    for name, locate in tqdm(list(photos), unit=" photos", dynamic_ncols=True):
        target = (args.out / name).with_suffix(".jpg")
        try:
            align_photo(args.photos / name, target, locate, args.image_size)
            num_aligned += 1
        except (ValueError, OSError) as error:
            left_out.append((name, str(error)))
    for name, reason in left_out:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    print(
        f"{args.out}: {num_aligned} faces aligned, {len(left_out)} photos left out",
        file=sys.stderr if args.json == "-" else sys.stdout,
    )
    commands.write_json(
        args.json,
        {
            "num_aligned": num_aligned,
            "left_out": [{"photo": name, "reason": reason} for name, reason in left_out],
        },
    )


if __name__ == "__main__":
    commands.run(main)
