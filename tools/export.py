"""Export a trained backbone: safetensors, torch.export, ONNX, with a model card.

    python tools/export.py runs/NAME OUT
    python tools/export.py MODEL OUT --formats onnx,onnx-fp16 --evaluation lfw.json
    python tools/export.py MODEL OUT --formats int8 --calibrate train.rec --set lfw=lfw.bin

MODEL is an exported backbone, a checkpoint or a run folder. ONNX models take any batch size; they
are run by onnxruntime in batches of 1, 2, 7 and 64 and compared with PyTorch before they are kept.

int8 is quantized by onnxruntime with images of --calibrate. It and float16 are verified on the sets
of --set beside float32, pair by pair; where the accuracy falls by more than --most-loss the end is
an error (the file stays, to be looked at). Sizes and images per second of this CPU stand beside.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.evaluation.resampling import NUM_REPLICATES
from kappaface_dist.evaluation.sets.pair_file import read_pairs
from kappaface_dist.models.coarse_export import export_int8, verify_coarse
from kappaface_dist.models.command_line import named_paths
from kappaface_dist.models.export import save_backbone
from kappaface_dist.models.metadata import learnt_facts
from kappaface_dist.models.model_card import model_card
from kappaface_dist.models.onnx_export import OPSET, Comparison, export_onnx
from kappaface_dist.models.program_export import export_program
from kappaface_dist.models.saved_model import SavedModel, find_summary, learnt, open_model
from kappaface_dist.whole_files import write_whole

FORMATS = {
    "safetensors": "backbone.safetensors",
    "torch": "backbone.pt2",
    "onnx": "backbone.onnx",
    "onnx-fp16": "backbone_fp16.onnx",
    "int8": "backbone_int8.onnx",
}
# Written unless others are asked for: int8 needs images.
DEFAULT_FORMATS = ("safetensors", "torch", "onnx", "onnx-fp16")
# In coarser arithmetic than float32.
COARSE = ("onnx-fp16", "int8")


def main() -> None:
    args = parse_args()
    formats = list(dict.fromkeys(args.formats.split(",")))
    if unknown := set(formats) - FORMATS.keys():
        raise ValueError(
            f"--formats names {', '.join(sorted(unknown))}, known are {', '.join(FORMATS)}"
        )
    check_arguments(args, formats)
    evaluation = None
    if args.evaluation:
        evaluation = json.loads(Path(args.evaluation).read_text(encoding="utf-8"))
    sets = {name: read_pairs(path) for name, path in named_paths("--set", args.sets).items()}
    model = open_model(args.model)
    if model.file_digest is not None:
        raise ValueError(
            f"{model.path} is an export that computes in its own way, and its weights cannot be"
            " taken out: export the .safetensors file, the checkpoint or the run"
        )
    facts = known_facts(model, evaluation)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"model": str(model.path), "weights_sha256": model.digest}
    report["files"] = {}
    texts = {}
    losses: list[str] = []
    entry: dict[str, Any] | None
    with tempfile.TemporaryDirectory() as folder:
        reference = out / FORMATS["onnx"] if "onnx" in formats else Path(folder) / "float.onnx"
        if reference.parent != out and ("int8" in formats or sets):
            write("onnx", reference, model, args.opset, facts)
        for name in sorted(formats, key=list(FORMATS).index):
            path = out / FORMATS[name]
            details = ""
            if name == "int8":
                entry, sentence = export_int8(
                    path, reference, model, facts, args.calibrate, args.calibration_images
                )
            else:
                found = write(name, path, model, args.opset, facts)
                entry, sentence = vars(found) if found else None, _sentence(name, found)
            if name in COARSE and sets:
                verdict = verify_coarse(
                    path, reference, model, facts, sets, args.batch_size, args.bootstrap
                )
                losses += [f"{path.name}: {loss}" for loss in verdict.losses(args.most_loss)]
                entry = {**(entry or {}), "verdict": verdict.summary()}
                details = verdict.text()
            report["files"][path.name] = entry
            texts[path.name] = sentence + (f"\n\n```\n{details}\n```\n" if details else "")
            if args.json != "-":
                print(f"{path}: {sentence}" + (f"\n{details}" if details else ""))
    card = model_card(model, texts, summary=find_summary(model), evaluation=evaluation)
    write_whole(out / "model_card.md", card)
    write_json(args.json, report)
    if losses:
        raise ValueError("; ".join(losses) + ": more than --most-loss, do not ship it unseen")


def parse_args() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument(
        "model", metavar="MODEL", help="exported backbone (.safetensors), checkpoint or run"
    )
    parser.add_argument("out", metavar="OUT", help="folder for the files")
    parser.add_argument(
        "--formats",
        default=",".join(DEFAULT_FORMATS),
        help=f"of {', '.join(FORMATS)} (default: %(default)s)",
    )
    parser.add_argument("--opset", type=int, default=OPSET, help="of ONNX (default: %(default)s)")
    parser.add_argument(
        "--evaluation", metavar="JSON", help="results for the card: evaluate.py --json"
    )
    parser.add_argument(
        "--calibrate", metavar="DATA", help="images for int8: a record, or a folder of images"
    )
    parser.add_argument(
        "--calibration-images",
        type=int,
        default=320,
        metavar="IMAGES",
        help="how many of them, spread evenly (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="verification set (.bin) for int8 and float16; repeat for several",
    )
    parser.add_argument(
        "--most-loss",
        type=float,
        default=0.005,
        metavar="SHARE",
        help="of accuracy, beside float32 (default: %(default)s, half a percentage point)",
    )
    options.add_batch_size(parser)
    options.add_bootstrap(parser, NUM_REPLICATES, "the differences'")
    options.add_json(parser)
    return parser.parse_args()


def check_arguments(args: argparse.Namespace, formats: list[str]) -> None:
    """Before minutes of work: raise ValueError for what cannot be meant."""
    if "int8" in formats and not (args.calibrate and args.sets):
        missing = "--calibrate DATA" if not args.calibrate else "--set NAME=PATH"
        raise ValueError(
            f"--formats has int8, which needs {missing}: images to find the activations' ranges"
            " with, and a verification set that tells what is lost"
        )
    for name, value in (("--calibrate", args.calibrate), ("--set", args.sets)):
        if value and not set(COARSE) & set(formats):
            raise ValueError(f"{name} is given, and no format of --formats uses it: add int8")
    if not 0 <= args.most_loss < 1:
        raise ValueError(f"--most-loss is {args.most_loss}, expected a share from 0 up to 1")
    for option in ("batch_size", "calibration_images"):
        if getattr(args, option) < 1:
            raise ValueError(
                f"--{option.replace('_', '-')} is {getattr(args, option)}, expected 1 or more"
            )
    if args.bootstrap < 0:
        raise ValueError(f"--bootstrap is {args.bootstrap}, expected 0 (no intervals) or more")


def write(
    name: str, path: Path, model: SavedModel, opset: int, facts: dict[str, str]
) -> Comparison | None:
    """Write one format; the comparison with PyTorch, where there is something to compare."""
    network, settings = model.network, model.settings
    if name == "safetensors":
        save_backbone(path, network, **vars(settings), facts=facts)
        return None
    if name == "torch":
        return export_program(path, network, settings, facts=facts)
    return export_onnx(path, network, settings, half=name == "onnx-fp16", opset=opset, facts=facts)


def known_facts(model: SavedModel, evaluation: dict[str, Any] | None) -> dict[str, str]:
    """What the files are to say of their training and thresholds."""
    facts = learnt(model)
    if evaluation is None:
        return facts
    measured = evaluation.get("weights_sha256", model.digest)
    if measured != model.digest:
        raise ValueError(
            f"--evaluation is of the weights {measured[:12]}, the model has {model.digest[:12]}:"
            " evaluate this model"
        )
    sets = evaluation.get("sets")
    return facts | learnt_facts(images=None, identities=None, verification=sets)


def _sentence(name: str, found: Comparison | None) -> str:
    if found is None:
        return "weights for this project"
    kinds = {
        "torch": "torch.export program, any batch size",
        "onnx": f"ONNX, opset {found.opset}, float32, any batch size",
        "onnx-fp16": f"ONNX, opset {found.opset}, float16 inside, any batch size",
    }
    return (
        f"{kinds[name]}; differs from PyTorch by at most {found.difference:.1e}, smallest cosine"
        f" {found.cosine:.6f} (batches of {', '.join(map(str, found.batches))})"
    )


if __name__ == "__main__":
    run(main)
