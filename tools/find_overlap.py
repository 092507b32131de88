"""Is the test in the training set? People of one set who are in the other, or twice in one.

    python tools/find_overlap.py TRAIN TEST --model runs/NAME --out OUT
    torchrun --nproc_per_node=8 tools/find_overlap.py train.rec lfw.bin --model MODEL
    python tools/find_overlap.py TRAIN --model MODEL      # classes of TRAIN that are one person

TRAIN is a dataset as for training, TEST another one or a verification set (.bin). People are
compared by their mean embeddings, and claimed to be one where the nearest of strangers would hardly
come as near, which each person's next ones tell. Writes to OUT: report.html with pictures to look
at, identity_map.tsv (who is who, as data.merge takes it), drop_train.tsv and drop_test.tsv, or
drop.tsv (lists for convert_record.py --drop), and for a .bin verification/report.html, with and
without those people. Embeddings are kept in OUT, and made again only where weights or images
changed.
"""

import argparse
import sys
from pathlib import Path

import torch

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.evaluation.embedding.store import StoredEmbeddings, aligned_images
from kappaface_dist.evaluation.overlap.files import match_entry, write_lists
from kappaface_dist.evaluation.overlap.matches import find_overlap
from kappaface_dist.evaluation.overlap.people import People, open_people
from kappaface_dist.evaluation.overlap.verification import verify_with_and_without
from kappaface_dist.evaluation.reports.overlap import (
    overlap_sentence,
    overlap_summary,
    write_overlap_report,
)
from kappaface_dist.evaluation.reports.pair_tables import text_table
from kappaface_dist.evaluation.resampling import NUM_REPLICATES
from kappaface_dist.models import command_line
from kappaface_dist.models.saved_model import SavedModel, model_facts, training_facts
from kappaface_dist.parallel import ranks as parallel


def main() -> None:
    args = parse_args()
    check_arguments(args)
    model, device = command_line.start(args)
    places = {"train": args.train} | ({"test": args.test} if args.test else {})
    people = {
        name: parallel.rank0_first(lambda place=place: open_people(place, args.images_each))  # type: ignore[misc]
        for name, place in places.items()
    }
    stored = {name: embed(args, model, name, each, device) for name, each in people.items()}
    command_line.stop(lambda: publish(args, model, people, stored, device))


def parse_args() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("train", metavar="TRAIN", help="record, folder or other dataset")
    parser.add_argument("test", metavar="TEST", nargs="?", help="the same, or a .bin")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="export, its folder, checkpoint or run"
    )
    parser.add_argument("--out", type=Path, default=Path("overlap"), metavar="FOLDER")
    parser.add_argument(
        "--false-share",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="largest expected share of false ones among the claims (default: %(default)s)",
    )
    parser.add_argument(
        "--images-each",
        type=int,
        default=10,
        metavar="IMAGES",
        help="of each class of a dataset at most so many are looked at (default: %(default)s)",
    )
    command_line.add_computing(parser)
    options.add_bootstrap(parser, NUM_REPLICATES, "the verification's")
    options.add_json(parser)
    return parser.parse_args()


def check_arguments(args: argparse.Namespace) -> None:
    """Before hours of work: raise ValueError for what cannot be meant."""
    if not 0 < args.false_share < 1:
        raise ValueError(f"--false-share is {args.false_share}, expected a share between 0 and 1")
    if args.images_each < 1:
        raise ValueError(f"--images-each is {args.images_each}, expected 1 or more")
    if args.bootstrap < 0:
        raise ValueError(f"--bootstrap is {args.bootstrap}, expected 0 (no intervals) or more")
    if args.test is None and Path(args.train).suffix == ".bin":
        raise ValueError(f"{args.train} is a verification set: name a dataset before it")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out is {args.out}, which is a file: name a folder")


def embed(
    args: argparse.Namespace, model: SavedModel, name: str, people: People, device: torch.device
) -> StoredEmbeddings:
    """Embed the images that are looked at, where that is not done yet; collective."""
    size = model.settings.image_size
    images = aligned_images(len(people.person_I), people.read, people.where, size)
    folder = args.out / "embeddings" / f"{name}_{model.embeds_as[:12]}"
    # A verification set with an unreadable image has no accuracy.
    keep = people.pairs is None
    return command_line.embed(args, model, device, images, folder, name, keep_unreadable=keep)


def publish(
    args: argparse.Namespace,
    model: SavedModel,
    people: dict[str, People],
    stored: dict[str, StoredEmbeddings],
    device: torch.device,
) -> None:
    """Search, and print and write everything."""
    unreadable = [(name, *each) for name, parts in stored.items() for each in parts.unreadable]
    for name, where, why in unreadable:
        print(f"left out of {name}: {where}: {why}", file=sys.stderr)
    first, second = people["train"], people.get("test")
    found = find_overlap(
        first,
        stored["train"],
        second,
        stored.get("test"),
        false_share=args.false_share,
        device=device,
    )
    reports = {}
    if second is not None and second.pairs is not None:
        reports = verify_with_and_without(
            Path(args.test),
            second,
            stored["test"],
            {match.second for match in found.matches},
            num_replicates=args.bootstrap,
        )
    looked_at = {
        name: f"{getattr(args, name)}, {len(each.label_P)} people, {len(each.person_I)} of"
        f" {each.num_images_P.sum()} images looked at, {len(stored[name].unreadable)} unreadable"
        for name, each in people.items()
    }
    page = write_overlap_report(
        args.out,
        first,
        second,
        found,
        reports,
        false_share=args.false_share,
        title=f"Overlap of {' and '.join(Path(getattr(args, name)).name for name in people)}",
        facts={
            **model_facts(model.path, model.digest, model.settings),
            **training_facts(model),
            **looked_at,
        },
        config=model.config,
    )
    written = write_lists(args.out, first, second, found)
    counts = overlap_summary(first, second, found)
    if args.json != "-":
        for name, text in looked_at.items():
            print(f"{name}: {text}")
        print(overlap_sentence(counts, second is None))
        if reports:
            print(text_table(reports))
        print(f"report: {page}; lists: {', '.join(map(str, written.values()))}")
    write_json(
        args.json,
        {
            "model": str(model.path),
            "weights_sha256": model.digest,
            **counts,
            "false_share": args.false_share,
            "false_match_rate": found.false_match_rate,
            "images_looked_at": {name: len(each.person_I) for name, each in people.items()},
            "unreadable": [{"set": s, "image": i, "reason": why} for s, i, why in unreadable],
            "identities": None
            if second is None or second.pairs is None
            else ("named" if second.name_P else "guessed"),
            "matched": [match_entry(match, first, second or first) for match in found.matches],
            "verification": {name: report.summary() for name, report in reports.items()},
            "files": {name: str(path) for name, path in written.items()},
        },
    )


if __name__ == "__main__":
    run(main)
