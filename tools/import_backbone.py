"""Take over a published InsightFace backbone (.pth), one of arcface_torch's checkpoints, or timm's.

    python tools/import_backbone.py backbone.pth r50.safetensors
    python tools/import_backbone.py resnet18.pth start.safetensors --name timm/resnet18 --partial

The result starts a training (backbone.init=r50.safetensors) or goes to evaluate.py and export.py.
Which backbone it is follows from its tensors, unless it is one of timm's, whose classifier is left
behind. Nothing in the file is run.
"""

from kappaface_dist import options
from kappaface_dist.backbones import BACKBONES
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.models.export import save_backbone
from kappaface_dist.models.insightface import import_backbone


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("file", metavar="FILE", help="backbone.pth, or checkpoint_gpu_0.pt")
    parser.add_argument("out", metavar="OUT.safetensors")
    parser.add_argument(
        "--name",
        metavar="NAME",
        help=f"{', '.join(BACKBONES)}, or timm/NAME; default: found by the tensors",
    )
    options.add_image_size(parser)
    parser.add_argument(
        "--partial", action="store_true", help="write even if tensors are not matched"
    )
    options.add_json(parser)
    args = parser.parse_args()
    model, settings, report = import_backbone(args.file, args.name, args.image_size)
    if args.json != "-":
        print("\n".join([f"{args.file} read as {settings.name}", *report.lines()]))
    write_json(args.json, {**vars(settings), **vars(report), "complete": report.complete})
    if not report.complete and not args.partial:
        raise ValueError(
            f"{args.file} does not match {settings.name} completely, nothing is written: see above,"
            " or write what there is with --partial"
        )
    save_backbone(args.out, model, **vars(settings))


if __name__ == "__main__":
    run(main)
