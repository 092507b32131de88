"""Which labels of a dataset are probably wrong, by a model trained on it or by any other.

    python tools/label_report.py runs/NAME                 # its own data, into runs/NAME/labels
    torchrun --nproc_per_node=8 tools/label_report.py MODEL --data train.rec --out labels
    python tools/convert_record.py train.rec clean.rec --clean runs/NAME/labels/labels.json

Lists images that sit in another class, classes that are two people, and pairs of classes that are
one, each with its probability, in OUT/labels.json; OUT/sheet.png shows the most probable ones.
Where the numbers do not fall into two kinds, nothing is listed. Delete an entry of the list that
you do not believe: convert_record.py --clean leaves out the images and joins the classes listed.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.data.sources.catalog import Catalog, open_catalog
from kappaface_dist.evaluation.embedding.files import unit_parts
from kappaface_dist.evaluation.embedding.store import StoredEmbeddings, aligned_images
from kappaface_dist.evaluation.label_noise import find_label_noise
from kappaface_dist.models import command_line
from kappaface_dist.models.label_report import write_label_report
from kappaface_dist.models.saved_model import SavedModel
from kappaface_dist.parallel import ranks as parallel


def main() -> None:
    args = parse_args()
    model, device = command_line.start(args)
    data = args.data or (model.config or {}).get("data", {}).get("train")
    if not data:
        raise ValueError(f"{args.model} does not say what it was trained on: give --data")
    if isinstance(data, dict):
        raise ValueError(
            f"{args.model} was trained on the datasets {', '.join(data)}: name the files of one"
            " with --data"
        )
    if args.out is None and not (Path(args.model) / "config.yaml").is_file():
        raise ValueError(f"{args.model} is no run folder to write into: give --out")
    out = Path(args.out or Path(args.model) / "labels")
    catalog = parallel.rank0_first(lambda: open_catalog(data))
    size = model.settings.image_size
    images = aligned_images(catalog.num_images, catalog.read, catalog.where, size)
    name = "images of this process"
    stored = command_line.embed(args, model, device, images, out / "parts", name)
    command_line.stop(lambda: publish(args, out, catalog, model, stored, device))


def parse_args() -> argparse.Namespace:
    parser = new_parser(__doc__)
    command_line.add_model(parser)
    parser.add_argument("--data", nargs="+", help="default: what the run was trained on")
    parser.add_argument("--out", metavar="FOLDER", help="default: labels in the run's folder")
    command_line.add_computing(parser)
    options.add_json(parser)
    return parser.parse_args()


def publish(
    args: argparse.Namespace,
    out: Path,
    catalog: Catalog,
    model: SavedModel,
    stored: StoredEmbeddings,
    device: torch.device,
) -> None:
    """Judge the labels, write the report, and say what is in it."""
    embedding_ID = np.concatenate([rows for _, rows in unit_parts(stored)])
    noise = find_label_noise(embedding_ID, catalog.label_I, device)
    facts = {"model": str(model.path), "weights_sha256": model.digest}
    report = write_label_report(out, catalog, noise, facts)
    kinds = ("wrong_images", "two_people", "one_person")
    counts = {kind: len(report[kind]) for kind in kinds}
    if args.json != "-":
        print(
            f"of {catalog.num_images} images {counts['wrong_images']} sit probably in another"
            f" class; of {catalog.num_classes} classes {counts['two_people']} are probably two"
            f" people; {counts['one_person']} pairs of classes are probably one person"
        )
        for where, why in stored.unreadable:
            print(f"unreadable: {where}: {why}")
        print("\n".join([*noise.notes, f"{out / 'labels.json'} lists them"]))
        if (out / "sheet.png").is_file():
            print(f"{out / 'sheet.png'} shows the most probable")
    write_json(args.json, {**counts, "notes": noise.notes, "file": str(out / "labels.json")})


if __name__ == "__main__":
    run(main)
