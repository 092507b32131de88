"""Identify aligned images in a gallery with distractors, as TinyFace and MegaFace do.

    python tools/identify.py MODEL --probes probe_img_ID_pairs.mat \\
        --gallery gallery_match_img_ID_pairs.mat --distractors Gallery_Distractor
    torchrun --nproc_per_node=8 tools/identify.py MODEL --probes facescrub_list.json \\
        --distractors megaface_list.json_1000000_1 --distractors-root MegaFace_aligned

Probes and gallery are folders with a folder per identity, equal names being one person, JSON
lists with "path" and "id", or TinyFace's own .mat lists. Without --gallery every probe is searched
for by every other image of its person, alone among the distractors (MegaFace). Scores are kept in
blocks, never as a matrix. --report writes report.html with its plots, and tables in Markdown and
LaTeX. Unreadable images are named and left out.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.evaluation.embedding.files import unit_parts
from kappaface_dist.evaluation.embedding.store import StoredEmbeddings, aligned_images
from kappaface_dist.evaluation.one_to_many.faces import identify_faces
from kappaface_dist.evaluation.reports.identification import write_identification_report
from kappaface_dist.evaluation.sets.face_lists import FaceList, read_distractors, read_faces
from kappaface_dist.models import command_line
from kappaface_dist.models.saved_model import SavedModel, model_facts, training_facts
from kappaface_dist.parallel import ranks as parallel


def main() -> None:
    args = parse_args()
    if not args.gallery and not args.distractors:
        raise ValueError("neither --gallery nor --distractors is given: where is one to search?")
    command_line.check_arguments(args)
    model, device = command_line.start(args)
    lists = parallel.agree(lambda: read_lists(args))
    stored = {name: embed(args, model, name, faces, device) for name, faces in lists.items()}
    command_line.stop(lambda: publish(args, model, lists, stored, device))


def parse_args() -> argparse.Namespace:
    parser = new_parser(__doc__)
    command_line.add_model(parser)
    parser.add_argument("--probes", required=True, metavar="PLACE")
    parser.add_argument("--gallery", metavar="PLACE")
    parser.add_argument("--distractors", metavar="PLACE")
    for name in ("probes", "gallery", "distractors"):
        parser.add_argument(f"--{name}-root", metavar="FOLDER", help="of a list's paths")
    parser.add_argument("--cache", metavar="FOLDER", default="embeddings", help="(%(default)s)")
    command_line.add_arguments(parser)
    return parser.parse_args()


def read_lists(args: argparse.Namespace) -> dict[str, FaceList]:
    """What was named on the command line, by kind."""
    lists = {"probes": read_faces(args.probes, args.probes_root)}
    if args.gallery:
        lists["gallery"] = read_faces(args.gallery, args.gallery_root)
    if args.distractors:
        lists["distractors"] = read_distractors(args.distractors, args.distractors_root)
    return lists


def embed(
    args: argparse.Namespace, model: SavedModel, name: str, faces: FaceList, device: torch.device
) -> StoredEmbeddings:
    """Embed a list into the cache, where it is not there yet; collective."""
    images = aligned_images(
        len(faces.paths),
        lambda number: faces.paths[number].read_bytes(),
        lambda number: str(faces.paths[number]),
        model.settings.image_size,
    )
    folder = Path(args.cache) / f"{name}_{model.embeds_as[:12]}"
    return command_line.embed(args, model, device, images, folder, name)


def without_unreadable(faces: FaceList, rows_ID: np.ndarray) -> tuple[FaceList, np.ndarray]:
    """Without the images that have no embedding.

    Raises:
        ValueError: none is left.
    """
    known_I = np.isfinite(rows_ID).all(axis=1)
    if not known_I.any():
        raise ValueError(f"none of {len(known_I)} images is readable, {faces.paths[0]} among them")
    kept = np.flatnonzero(known_I)
    return faces.take(kept), rows_ID[kept]


def publish(
    args: argparse.Namespace,
    model: SavedModel,
    lists: dict[str, FaceList],
    stored: dict[str, StoredEmbeddings],
    device: torch.device,
) -> None:
    """Identify, and print and write everything that was asked for."""
    # Only on one rank: a million embeddings are 2 GB, which not every rank needs to hold.
    embedded = {
        name: np.concatenate([rows for _, rows in unit_parts(parts)])
        for name, parts in stored.items()
    }
    unreadable = [(name, *each) for name, parts in stored.items() for each in parts.unreadable]
    for name, where, why in unreadable:
        print(f"left out of {name}: {where}: {why}", file=sys.stderr)
    for name in lists:
        faces, rows_ID = without_unreadable(lists[name], embedded[name])
        lists, embedded = {**lists, name: faces}, {**embedded, name: rows_ID}
    result = identify_faces(lists, embedded, device=device, num_replicates=args.bootstrap)
    facts = {"model": str(model.path), "weights_sha256": model.digest}
    sizes = {name: len(faces.paths) for name, faces in lists.items()}
    if args.json != "-":
        counts = ", ".join(f"{size} {name}" for name, size in sizes.items())
        print(f"{counts} ({result.summary['protocol']})")
        for k, rate in result.summary["rank"].items():
            print(f"rank-{k}: {'-' if rate is None else f'{rate:.2%}'}")
    left_out = [{"list": name, "image": where, "reason": why} for name, where, why in unreadable]
    write_json(args.json, {**facts, "images": sizes, "unreadable": left_out, **result.summary})
    if args.report:
        facts = {
            **model_facts(model.path, model.digest, model.settings),
            **training_facts(model),
            **{
                name: f"{getattr(args, name)}, {len(faces.paths)} images, SHA-256 of their names"
                f" {faces.digest()}"
                for name, faces in lists.items()
            },
        }
        page = write_identification_report(
            Path(args.report),
            result,
            name=" in ".join(["probes", "gallery" if "gallery" in lists else "distractors"]),
            title=f"Identification by {model.settings.name}",
            facts=facts,
            config=model.config,
        )
        if args.json != "-":
            print(f"report: {page}")


if __name__ == "__main__":
    run(main)
