"""Write a first configuration for your data: every choice with its reason, and the commands to run.

kappaface init photos/train                     # a folder per person, or a folder with train.rec
kappaface init data/glint360k --gpus 8 --gpu a100 --out glint.yaml    # for another machine
"""

import argparse
from pathlib import Path

from kappaface_dist import commands
from kappaface_dist.data.prepare.look import odd_sizes
from kappaface_dist.data.sources.catalog import Catalog, find_sources, open_catalog
from kappaface_dist.data.sources.folder import FolderSource
from kappaface_dist.planning.first_config import Dataset, as_yaml, choose
from kappaface_dist.planning.plan import USABLE_SHARE
from kappaface_dist.planning.step_time import DEVICES
from kappaface_dist.planning.this_machine import Machine, machine_of, this_machine


def parse_args() -> argparse.Namespace:
    parser = commands.new_parser(__doc__)
    parser.add_argument("data", help="photos, a record, or a folder with either")
    parser.add_argument("--name", help="of the run and the file (default: the data's folder)")
    parser.add_argument("--out", type=Path, metavar="YAML", help="default: NAME.yaml, here")
    parser.add_argument("--gpus", type=int, help="of the machine (default: this machine's)")
    parser.add_argument("--gpu", choices=sorted(DEVICES), help="which (default: this machine's)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if (args.gpus is None) != (args.gpu is None):
        raise ValueError("--gpus and --gpu belong together: give both, or neither for this machine")
    machine = this_machine() if args.gpu is None else machine_of(args.gpu, args.gpus)
    folder = Path(args.data) if Path(args.data).is_dir() else Path(args.data).parent
    name = args.name or folder.resolve().name
    out = args.out or Path(f"{name}.yaml")
    if out.exists():
        raise ValueError(f"{out} is there already: delete it, or choose another with --out")
    catalog = open_catalog(args.data)
    sets = {path.stem: str(path) for path in sorted(folder.glob("*.bin"))}
    data = Dataset(train_path(args.data), catalog.count_C, sets)
    choices, memory = choose(name, data, machine)
    needed, usable = sum(memory.values()), USABLE_SHARE * machine.memory_bytes
    fits = "fits" if needed <= usable else "does NOT fit: kappaface plan says what to change"
    heading = (
        f"kappaface train {out}\nMade by kappaface init for {machine}.\n"
        f"The plan: {needed / 1e9:.2f} GB of {usable / 1e9:.2f} usable for each process: {fits}."
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(as_yaml(choices, heading), encoding="utf-8")
    print(f"{out}: for {data.num_images:,} images of {len(data.count_C):,} identities; {machine}")
    print(heading.splitlines()[-1] + "\n")
    print("\n".join(next_commands(args.data, catalog, out, name, machine, args.gpu)))


def train_path(data: str) -> str:
    """The file that a folder stands for, where it is one."""
    sources = find_sources(data)
    return str(sources[0]) if len(sources) == 1 else data


def next_commands(
    data: str, catalog: Catalog, out: Path, name: str, machine: Machine, gpu: str | None
) -> list[str]:
    """What to run, each with what it is for."""
    lines = [("check-record " + data, "looks at every image")]
    if isinstance(catalog.sources[0], FolderSource):
        lines.append((f"make-record {data} data/{name}", "one file, which disks read faster"))
    if gpu:
        lines.append((f"plan {out} --gpus {max(machine.num_gpus, 1)} --gpu {gpu}", "memory, time"))
    lines += [
        (f"train {out} --check", "builds everything, and stops"),
        (f"train {out}", "trains; the same again goes on where it was"),
        (f"watch runs/{name}", "in another terminal"),
    ]
    width = max(len(command) for command, _ in lines) + 2
    written = [f"kappaface {command:{width}}# {why}" for command, why in lines]
    if note := odd_sizes(catalog):
        written.insert(0, f"note: {note}")
    return written


if __name__ == "__main__":
    commands.run(main)
