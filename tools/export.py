"""Export a trained backbone: safetensors, torch.export, ONNX, with a model card.

    python tools/export.py runs/NAME OUT
    python tools/export.py MODEL OUT --formats onnx,onnx-fp16 --evaluation lfw.json

MODEL is an exported backbone, a checkpoint or a run folder. ONNX models take any batch size; they
are run by onnxruntime in batches of 1, 2, 7 and 64 and compared with PyTorch before they are kept.
"""

import json
from pathlib import Path
from typing import Any

import torch

from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.models.export import save_backbone
from kappaface_dist.models.model_card import find_summary, model_card
from kappaface_dist.models.onnx_export import OPSET, Comparison, compare, export_onnx
from kappaface_dist.models.saved_model import SavedModel, open_model

FORMATS = {
    "safetensors": "backbone.safetensors",
    "torch": "backbone.pt2",
    "onnx": "backbone.onnx",
    "onnx-fp16": "backbone_fp16.onnx",
}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("model", metavar="MODEL", help="exported backbone, checkpoint or run")
    parser.add_argument("out", metavar="OUT", help="folder for the files")
    parser.add_argument("--formats", default=",".join(FORMATS), help="(default: %(default)s)")
    parser.add_argument("--opset", type=int, default=OPSET, help="of ONNX (default: %(default)s)")
    parser.add_argument(
        "--evaluation", metavar="JSON", help="results for the card: evaluate.py --json"
    )
    parser.add_argument("--json", metavar="PATH|-", help="write the comparisons as JSON")
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
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"model": str(model.path), "weights_sha256": model.digest}
    report["files"] = {}
    texts = {}
    for name in formats:
        found = write(name, out / FORMATS[name], model, args.opset)
        report["files"][FORMATS[name]] = None if found is None else vars(found)
        texts[FORMATS[name]] = _sentence(name, args.opset, found)
        if args.json != "-":
            print(f"{out / FORMATS[name]}: {texts[FORMATS[name]]}")
    card = model_card(model, texts, summary=find_summary(model), evaluation=evaluation)
    (out / "model_card.md").write_text(card, encoding="utf-8")
    write_json(args.json, report)


def write(name: str, path: Path, model: SavedModel, opset: int) -> Comparison | None:
    """Write one format; the comparison with PyTorch, where there is something to compare."""
    settings = model.settings
    if name == "safetensors":
        save_backbone(path, model.network, **vars(settings))
        return None
    if name == "torch":
        example = torch.zeros(2, 3, settings.image_size, settings.image_size)
        shapes = ({0: torch.export.Dim("batch")},)
        torch.export.save(
            torch.export.export(model.network, (example,), dynamic_shapes=shapes), path
        )
        loaded = torch.export.load(path).module()
        return compare(
            lambda image: loaded(torch.from_numpy(image)).detach(), model.network, settings
        )
    return export_onnx(path, model.network, settings, half=name == "onnx-fp16", opset=opset)


def _sentence(name: str, opset: int, found: Comparison | None) -> str:
    kinds = {
        "safetensors": "weights for this project",
        "torch": "torch.export program, any batch size",
        "onnx": f"ONNX, opset {opset}, float32, any batch size",
        "onnx-fp16": f"ONNX, opset {opset}, float16 inside, any batch size",
    }
    if found is None:
        return kinds[name]
    return (
        f"{kinds[name]}; differs from PyTorch by at most {found.difference:.1e}, smallest cosine"
        f" {found.cosine:.6f} (batches of {', '.join(map(str, found.batches))})"
    )


if __name__ == "__main__":
    run(main)
