"""Show what is in a checkpoint, and verify its checksums.

    python tools/checkpoint_info.py runs/NAME                       its last checkpoint
    python tools/checkpoint_info.py runs/NAME/checkpoints/step_00001000

Ends with code 1 where a file is missing or damaged. `sha256sum -c SHA256SUMS` in the checkpoint's
folder verifies too.
"""

import math
from pathlib import Path
from typing import Any

from kappaface_dist import options
from kappaface_dist.checkpoint.folder import CHECKSUMS, complete_checkpoints, damages, read_numbers
from kappaface_dist.checkpoint.tensors import stored_tensors
from kappaface_dist.commands import new_parser, run, write_json


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("path", type=Path, metavar="RUN|CHECKPOINT")
    options.add_json(parser)
    args = parser.parse_args()
    folder = _checkpoint(args.path)
    problems = damages(folder, 0, 1)
    if problems:
        raise ValueError(f"checkpoint {folder} is damaged: {'; '.join(problems)}")
    report = _describe(folder)
    if args.json != "-":
        print(_text(report))
    write_json(args.json, report)


def _checkpoint(path: Path) -> Path:
    if (path / CHECKSUMS).is_file():
        return path
    found = complete_checkpoints(path / "checkpoints") or complete_checkpoints(path)
    if not found:
        raise ValueError(f"{path} is neither a complete checkpoint nor a run folder with one")
    return found[-1]


def _describe(folder: Path) -> dict[str, Any]:
    return {
        "checkpoint": str(folder),
        "numbers": read_numbers(folder),
        "tensors": {
            name: {
                "shape": shape,
                "dtype": str(dtype).removeprefix("torch."),
                "bytes": math.prod(shape) * dtype.itemsize,
            }
            for name, (shape, dtype) in stored_tensors(folder).items()
        },
        "file_bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }


def _text(report: dict[str, Any]) -> str:
    numbers = report["numbers"]
    lines = [
        f"{report['checkpoint']}: whole, all checksums match",
        f"step {numbers['run']['step']}, {numbers['run']['position']} images read,"
        f" written by {numbers['world_size']} process(es)",
        *(f"{name} {value:.4f}" for name, value in numbers["metrics"].items()),
        "",
        f"{'tensor':<48}{'dtype':>10}{'MB':>12}  shape",
    ]
    for name, tensor in report["tensors"].items():
        shape = " x ".join(map(str, tensor["shape"])) or "1"
        lines.append(f"{name:<48}{tensor['dtype']:>10}{tensor['bytes'] / 1e6:>12.3f}  {shape}")
    total = sum(report["file_bytes"].values())
    return "\n".join([*lines, f"{len(report['file_bytes'])} files, {total / 1e6:.3f} MB"])


if __name__ == "__main__":
    run(main)
