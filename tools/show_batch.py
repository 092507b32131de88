"""Write a sheet of what the network sees: images as the loader delivers them.

The first row of each pair is without the random changes, the second with them, as its label says.
Example: python tools/show_batch.py data/faces/train.rec sheet.png --augment strong
"""

import argparse

import torch
from PIL import Image, ImageDraw

from kappaface_dist import commands, options
from kappaface_dist.data.loading.augment import PRESETS
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.sources.catalog import Catalog, open_catalog

GAP = 2  # pixels between images
LABEL = 58  # pixels for the labels of the rows


def main() -> None:
    parser = commands.new_parser(__doc__)
    parser.add_argument("data", help="as data.train in a configuration")
    parser.add_argument("out", help="picture to write, .png")
    parser.add_argument("--augment", choices=PRESETS, default="flip", help="(default: flip)")
    parser.add_argument("--loader", choices=("dali", "cpu"), default="cpu")
    options.add_image_size(parser)
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--rows", type=int, default=4, help="pairs of rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--position", type=int, default=0, help="in the stream, in images")
    options.add_json(parser)
    args = parser.parse_args()

    catalog = open_catalog(args.data)
    plain, changed = (load(catalog, args, preset) for preset in ("none", args.augment))
    size = args.image_size
    sheet = Image.new(
        "RGB",
        (LABEL + args.columns * (size + GAP) - GAP, args.rows * (2 * size + 3 * GAP) - 2 * GAP),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for top in range(0, sheet.height, 2 * size + 3 * GAP):
        for label, middle in (("as it is", top), (args.augment, top + size + GAP)):
            draw.text((3, middle + size // 2 - 6), label, fill="black")
    for i in range(args.rows * args.columns):
        row, column = divmod(i, args.columns)
        top = row * (2 * size + 3 * GAP)
        sheet.paste(to_picture(plain[i]), (LABEL + column * (size + GAP), top))
        sheet.paste(to_picture(changed[i]), (LABEL + column * (size + GAP), top + size + GAP))
    sheet.save(args.out)
    if args.json != "-":
        print(f"{args.out}: {len(plain)} images, above as they are, below with {args.augment!r}")
    report = {"images": len(plain), "augment": args.augment, "position": args.position}
    commands.write_json(args.json, report)


def load(catalog: Catalog, args: argparse.Namespace, preset: str) -> torch.Tensor:
    """The images of the sheet, as the network gets them."""
    loader = build_loader(
        catalog,
        loader=args.loader,
        batch_size=args.rows * args.columns,
        image_size=args.image_size,
        augment=preset,
        seed=args.seed,
        device=torch.device("cpu"),
    )
    (batch,) = loader.batches(args.position, 1)
    return batch.image_B3HW


def to_picture(image_3HW: torch.Tensor) -> Image.Image:
    """Back from [-1, 1] to pixels."""
    pixels_HW3 = (image_3HW * 127.5 + 127.5).round().clamp(0, 255).byte().permute(1, 2, 0)
    return Image.fromarray(pixels_HW3.contiguous().numpy())


if __name__ == "__main__":
    commands.run(main)
