"""Export a trained backbone: safetensors, torch.export, ONNX, with a model card.

    python tools/export.py runs/NAME OUT
    python tools/export.py MODEL OUT --formats onnx,onnx-fp16 --evaluation lfw.json

MODEL is an exported backbone, a checkpoint or a run folder. ONNX models take any batch size; they
are run by onnxruntime in batches of 1, 2, 7 and 64 and compared with PyTorch before they are kept.
"""

import json
from pathlib import Path
from typing import Any

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
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
}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument(
        "model", metavar="MODEL", help="exported backbone (.safetensors), checkpoint or run"
    )
    parser.add_argument("out", metavar="OUT", help="folder for the files")
    parser.add_argument("--formats", default=",".join(FORMATS), help="(default: %(default)s)")
    parser.add_argument("--opset", type=int, default=OPSET, help="of ONNX (default: %(default)s)")
    parser.add_argument(
        "--evaluation", metavar="JSON", help="results for the card: evaluate.py --json"
    )
    options.add_json(parser)
    args = parser.parse_args()
    formats = args.formats.split(",")
    if unknown := set(formats) - FORMATS.keys():
        raise ValueError(
            f"--formats names {', '.join(sorted(unknown))}, known are {', '.join(FORMATS)}"
        )
    evaluation = None
    if args.evaluation:
        evaluation = json.loads(Path(args.evaluation).read_text(encoding="utf-8"))
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
    for name in formats:
        found = write(name, out / FORMATS[name], model, args.opset, facts)
        report["files"][FORMATS[name]] = None if found is None else vars(found)
        texts[FORMATS[name]] = _sentence(name, found)
        if args.json != "-":
            print(f"{out / FORMATS[name]}: {texts[FORMATS[name]]}")
    card = model_card(model, texts, summary=find_summary(model), evaluation=evaluation)
    write_whole(out / "model_card.md", card)
    write_json(args.json, report)


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
