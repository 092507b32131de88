"""One person or not? Compare photos, or folders with photos of one person each.

    python tools/compare.py MODEL a.jpg b.jpg
    python tools/compare.py runs/NAME a.jpg b.jpg c.jpg --far 1e-4 --detector yunet.onnx
    python tools/compare.py MODEL folder_of_one folder_of_another --threshold 0.3

The cosine from which on two are the same is the model's own for --far, measured on single images
when it was evaluated (a run's verification sets, or export.py --evaluation), or --threshold. Faces
are taken as aligned, unless --landmarks or --detector says where their points are, as for
align_faces.py. A folder stands for one person: its images' embeddings are added up.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.data.align import align_face
from kappaface_dist.data.images import decode_picture
from kappaface_dist.data.prepare.landmarks import YuNetDetector, read_landmarks
from kappaface_dist.models import command_line
from kappaface_dist.models.comparison import compare_all
from kappaface_dist.models.embedder import Embedder, embedder_of

USUAL_FAR = 1e-3


def main() -> None:
    args = parse_args()
    if len(args.places) < 2:
        raise ValueError("one photo is named, expected two or more to compare")
    if args.far is not None and not 0 < args.far < 1:
        raise ValueError(f"--far is {args.far}, expected a share between 0 and 1 such as 1e-3")
    for place in args.places:
        if not place.exists():
            raise ValueError(f"there is no {place}: name a photo or a folder of photos")
    embedder = embedder_of(*command_line.start(args))
    command_line.stop(lambda: compare(args, embedder))


def compare(args: argparse.Namespace, embedder: Embedder) -> None:
    """Compare, print and write."""
    threshold, far = args.threshold, None
    if threshold is None:
        far = args.far or usual_far(embedder, args.set)
        threshold = embedder.threshold(far, args.set)
    read = reader(args, embedder)
    found, left_out = compare_all(
        embedder, args.places, threshold, read, batch_size=args.batch_size
    )
    how = "--threshold" if far is None else f"FAR {far:g}"
    if far is not None and args.far is None and far > USUAL_FAR:
        how += f": the model has none for {USUAL_FAR:g}"
    if args.json != "-":
        for each in found:
            answer = "same" if each.same else "different"
            print(f"{answer}: {each.first} and {each.second}, cosine {each.cosine:.3f}")
        print(f"same from cosine {threshold:.3f} on ({how})")
        for path, why in left_out:
            print(f"left out: {path}: {why}")
    write_json(
        args.json,
        {
            "threshold": threshold,
            "far": far,
            "pairs": [each.summary() for each in found],
            "left_out": [{"image": path, "reason": why} for path, why in left_out],
        },
    )


def usual_far(embedder: Embedder, name: str | None) -> float:
    """The usual rate; where the model was measured with too few pairs for it, the next higher."""
    sets = embedder.thresholds.items()
    known = [float(rate) for each, rates in sets if name in (None, each) for rate in rates]
    return min((far for far in known if far >= USUAL_FAR), default=USUAL_FAR)


def parse_args() -> argparse.Namespace:
    parser = new_parser(__doc__)
    command_line.add_model(parser)
    parser.add_argument("places", nargs="+", type=Path, metavar="PHOTO", help="or folder")
    parser.add_argument(
        "--far",
        type=float,
        help=f"false accept rate (default: {USUAL_FAR:g}, or the next that the model has)",
    )
    parser.add_argument("--set", help="that measured it (default: the strictest of all)")
    parser.add_argument("--threshold", type=float, metavar="COSINE", help="in place of --far")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--landmarks", type=Path, metavar="FILE")
    source.add_argument("--detector", type=Path, metavar="ONNX", help="the largest face is taken")
    command_line.add_computing(parser)
    options.add_json(parser)
    return parser.parse_args()


def reader(args: argparse.Namespace, embedder: Embedder) -> Callable[[Path], bytes | np.ndarray]:
    """How the face of a photo is read."""
    if args.landmarks is None and args.detector is None:
        return Path.read_bytes
    if args.landmarks is not None:
        known = dict(read_landmarks(args.landmarks))
    else:
        detector = YuNetDetector(args.detector)

    def read(path: Path) -> np.ndarray:
        pixels_HW3 = decode_picture(path.read_bytes())
        if args.landmarks is None:
            points_52 = detector.largest_face(pixels_HW3)
            if points_52 is None:
                raise ValueError("no face was found")
        elif (points_52 := known.get(str(path))) is None:
            raise ValueError(f"{args.landmarks} has no line that begins with this path")
        return align_face(pixels_HW3, points_52, embedder.image_size)

    return read


if __name__ == "__main__":
    run(main)
