"""Embed a dataset: a record, a folder with a folder per identity, or any folder of images.

    python tools/embed.py MODEL data/faces/train.rec OUT
    torchrun --nproc_per_node=8 tools/embed.py MODEL photos OUT --format parquet

Writes OUT/embeddings.npy (float32, a row of unit length per image) and OUT/images.jsonl (where each
row's image lies, and its label), or OUT/embeddings.parquet with all of it. The processes share the
images. A job that was stopped goes on where it was: finished parts stay in OUT/parts, and are made
again only where weights or images changed. Unreadable images are rows of NaN, and are listed.
"""

import argparse
from pathlib import Path

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.evaluation.embedding.files import (
    LabelledImages,
    open_images,
    write_npy,
    write_parquet,
)
from kappaface_dist.evaluation.embedding.store import StoredEmbeddings, aligned_images
from kappaface_dist.models import command_line
from kappaface_dist.models.saved_model import SavedModel
from kappaface_dist.parallel import ranks as parallel


def main() -> None:
    args = parse_args()
    model, device = command_line.start(args)
    dataset = parallel.rank0_first(lambda: open_images(args.images))
    size = model.settings.image_size
    images = aligned_images(dataset.count, dataset.read, dataset.where, size)
    parts, name = Path(args.out) / "parts", "images of this process"
    stored = command_line.embed(args, model, device, images, parts, name, flip=args.flip)
    command_line.stop(lambda: publish(args, model, dataset, stored))


def parse_args() -> argparse.Namespace:
    parser = new_parser(__doc__)
    command_line.add_model(parser)
    parser.add_argument("images", metavar="IMAGES", help="a .rec file, or a folder")
    parser.add_argument("out", metavar="OUT", help="folder for the result")
    parser.add_argument("--format", choices=("npy", "parquet"), default="npy")
    command_line.add_computing(parser)
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="add the mirror image's embedding, as the evaluation does",
    )
    options.add_json(parser)
    return parser.parse_args()


def publish(
    args: argparse.Namespace, model: SavedModel, dataset: LabelledImages, stored: StoredEmbeddings
) -> None:
    """Write the result, and say what is in it."""
    write = write_npy if args.format == "npy" else write_parquet
    written = write(Path(args.out), stored, dataset)
    report = {
        "images": stored.count,
        "reused": stored.num_reused,
        "unreadable": [{"image": where, "reason": why} for where, why in stored.unreadable],
        "embedding_size": model.settings.embedding_size,
        "weights_sha256": model.digest,
        "files": [str(path) for path in written],
    }
    if args.json != "-":
        print(
            f"{written[0]}: {stored.count} images, {stored.num_reused} of them done before,"
            f" {len(stored.unreadable)} unreadable"
        )
        for where, why in stored.unreadable:
            print(f"unreadable: {where}: {why}")
    write_json(args.json, report)


if __name__ == "__main__":
    run(main)
