"""Write the identity map for a run that goes on with other identities, matched by name.

    python tools/map_identities.py OLD NEW map.tsv

OLD and NEW are a dataset that knows the names of its identities (a folder of photos, or what
make_record.py and convert_record.py made of one), or a text file with a name per line, that of
class 0 first. Then train with
head.init=CHECKPOINT head.identity_map=map.tsv
"""

from collections.abc import Sequence
from pathlib import Path

from kappaface_dist import options
from kappaface_dist.checkpoint.identity_map import write_identity_map
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.class_names import SUFFIX, read_class_names
from kappaface_dist.data.sources.finding import FILE_SOURCES
from kappaface_dist.text_files import read_lines


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("old", type=Path, help="identities of the earlier run")
    parser.add_argument("new", type=Path, help="identities of the run to come")
    parser.add_argument("out", type=Path, help="the map")
    options.add_json(parser)
    args = parser.parse_args()
    old, new = _names(args.old), _names(args.new)
    stay = write_identity_map(args.out, old, new)
    report = {"stay": stay, "go": len(old) - stay, "new": len(new) - stay}
    if args.json != "-":
        print(f"{stay} identities stay, {report['go']} go, {report['new']} are new")
    write_json(args.json, report)


def _names(path: Path) -> Sequence[str]:
    if not path.exists():
        raise ValueError(f"there is no {path}: name a dataset, or a text file of names")
    if path.suffix == SUFFIX:
        return read_class_names(path) or []
    if not path.is_dir() and path.suffix not in FILE_SOURCES:
        return read_lines(path)
    names = open_catalog(path).class_names
    if names is None:
        raise ValueError(
            f"{path} has no names beside it ({path.stem}{SUFFIX}): give a text file of them"
        )
    return names


if __name__ == "__main__":
    run(main)
