"""What the tools that embed images with a saved model have in common."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from kappaface_dist import options
from kappaface_dist.evaluation.embedding.store import ImageList, StoredEmbeddings, embed_to_folder
from kappaface_dist.evaluation.resampling import NUM_REPLICATES
from kappaface_dist.models.exported import ExportedNetwork
from kappaface_dist.models.saved_model import SavedModel, open_model
from kappaface_dist.parallel import ranks as parallel


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model, which comes first."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="exported backbone (.safetensors, .onnx, .pt2), its folder, checkpoint or run",
    )


def add_computing(parser: argparse.ArgumentParser) -> None:
    """How the network computes: for `start`."""
    options.add_batch_size(parser)
    options.add_device(parser, None)
    text = "that the network computes with in each process, 0 for its own choice"
    options.add_threads(parser, text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How the network computes, intervals, and where the results go."""
    add_computing(parser)
    options.add_bootstrap(parser, NUM_REPLICATES, "the confidence")
    parser.add_argument("--report", metavar="FOLDER", help="write the HTML report there")
    options.add_json(parser)


def check_arguments(args: argparse.Namespace) -> None:
    """Before hours of work: raise ValueError for what cannot be meant."""
    if args.bootstrap < 0:
        raise ValueError(f"--bootstrap is {args.bootstrap}, expected 0 (no intervals) or more")
    if args.report is not None and Path(args.report).exists() and not Path(args.report).is_dir():
        raise ValueError(f"--report is {args.report}, which is a file: name a folder")


def named_paths(option: str, sets: Sequence[str]) -> dict[str, Path]:
    """The values NAME=PATH of an option that may be given several times.

    Raises:
        ValueError: one is of another form, or a name comes twice.
    """
    paths = {}
    for text in sets:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ValueError(f"{option} is {text!r}, expected NAME=PATH, as in lfw=data/lfw.bin")
        if name in paths:
            raise ValueError(f"{option} names {name!r} twice, expected each name once")
        paths[name] = Path(path)
    return paths


def start(args: argparse.Namespace) -> tuple[SavedModel, torch.device]:
    """Join torchrun's processes, and open the model on this one's device; collective.

    Args:
        args: of `add_computing`, with the model.

    Raises:
        ValueError: an option cannot be meant, or the model cannot be read or computed there.
    """
    if args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}, expected 1 or more")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = parallel.start(device_name=args.device)
    on_cpu = args.device == "cpu"
    model = parallel.agree(lambda: open_model(args.model, num_threads=args.threads, on_cpu=on_cpu))
    exported = isinstance(model.network, ExportedNetwork) and not model.network.on_gpu
    if exported and (args.device or "cpu") != "cpu":
        raise ValueError(
            f"--device is {args.device}, and {model.path} is computed on the CPU here: leave the"
            " option out, or take the .safetensors file or the run"
        )
    model.network.to(device)
    return model, device


def embed(
    args: argparse.Namespace,
    model: SavedModel,
    device: torch.device,
    images: ImageList,
    folder: Path,
    name: str,
    *,
    flip: bool = True,
    keep_unreadable: bool = True,
) -> StoredEmbeddings:
    """Embed a list of images into a folder, where that is not done yet, with a bar; collective.

    Args:
        args: of `add_computing`.
        name: of the images, for the bar.
        flip, keep_unreadable: as for `embed_to_folder`.
    """
    with image_bar(name) as bar:
        return embed_to_folder(
            model.network,
            images,
            folder,
            settings={"weights": model.embeds_as, "image_size": str(model.settings.image_size)},
            batch_size=args.batch_size,
            device=device,
            flip=flip,
            keep_unreadable=keep_unreadable,
            progress=bar.update,
        )


def image_bar(name: str) -> tqdm:
    """Rank 0's images; the other ranks show nothing."""
    silent = True if parallel.rank() else None
    return tqdm(desc=name, unit=" images", disable=silent, leave=False)


def stop(publish: Callable[[], None]) -> None:
    """Publish on rank 0, whose fault is every rank's, and leave the group; collective."""
    parallel.agree(lambda: publish() if parallel.rank() == 0 else None)
    parallel.stop()
