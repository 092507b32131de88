"""Cut aligned 112 x 112 faces out of photos, by five landmarks each.

The landmarks come from a file with lines "photo x1 y1 x2 y2 x3 y3 x4 y4 x5 y5" (eye, eye, nose,
corners of the mouth, left to right in the picture; photos relative to the folder), or from a
detector: a YuNet model file for OpenCV. The results keep the photos' folders, and make_record.py
reads them.
Examples:
  python tools/align_faces.py photos aligned --landmarks landmarks.txt
  python tools/align_faces.py photos aligned --detector face_detection_yunet_2023mar.onnx
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kappaface_dist import commands
from kappaface_dist.data.align import align_face
from kappaface_dist.data.images import decode_picture, encode_jpeg
from kappaface_dist.data.prepare.landmarks import YuNetDetector, read_landmarks
from kappaface_dist.data.sources.base import IMAGE_SUFFIXES

Locate = Callable[[np.ndarray], np.ndarray | None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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

    num_aligned, left_out = 0, []
    for name, locate in tqdm(list(work(args)), unit=" photos", dynamic_ncols=True):
        try:
            pixels_HW3 = decode_picture((args.photos / name).read_bytes())
            points_52 = locate(pixels_HW3)
            if points_52 is None:
                raise ValueError("no face was found")
            aligned = align_face(pixels_HW3, points_52, args.image_size)
        except (ValueError, OSError) as error:
            left_out.append((name, str(error)))
            continue
        target = (args.out / name).with_suffix(".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode_jpeg(aligned))
        num_aligned += 1
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


def work(args: argparse.Namespace) -> Iterator[tuple[str, Locate]]:
    """The photos, and how to find the face in each."""
    if args.landmarks:
        for name, points_52 in read_landmarks(args.landmarks):
            yield name, lambda _, found=points_52: found
        return
    detector = YuNetDetector(args.detector)
    for path in sorted(args.photos.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield str(path.relative_to(args.photos)), detector.largest_face


if __name__ == "__main__":
    commands.run(main)
