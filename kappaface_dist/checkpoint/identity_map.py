"""Which class of an earlier run is which class of this one, when identities come and go.

The map (`data/sources/class_map.py`) has a line per identity that stays: its class in the earlier
run, its class in this one. Classes of the earlier run that it does not name are left out, classes
of this run that it does not name start anew. tools/map_identities.py writes it from two lists of
names.
Shapes: C classes of this run.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kappaface_dist.data.sources.class_map import Side, read_class_map
from kappaface_dist.text_files import shown


def read_identity_map(path: str | Path, num_old: int, num_classes: int) -> np.ndarray:
    """The earlier class of each class [C], int64; −1 where it is new.

    Raises:
        ValueError: there is no such file, or a line is not of that form, or names a class out of
            range or twice.
    """
    old, new = Side("earlier class {}", num_old), Side("present class {}", num_classes)
    return read_class_map(path, old, new)


def write_identity_map(path: str | Path, old: Sequence[str], new: Sequence[str]) -> int:
    """Write the map of two lists of names, by class; returns how many identities stay.

    Raises:
        ValueError: a name occurs twice in a list.
    """
    for kind, names in (("earlier", old), ("new", new)):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the {kind} list names {twice!r} twice: which class is it?")
    place = {name: label for label, name in enumerate(old)}
    stay = [(place[name], label, name) for label, name in enumerate(new) if name in place]
    text = "# earlier class, class, name\n"
    # The name is for people: a line break in it must not begin a line.
    text += "".join(f"{before}\t{label}\t{shown(name)}\n" for before, label, name in stay)
    Path(path).write_text(text, encoding="utf-8")
    return len(stay)
