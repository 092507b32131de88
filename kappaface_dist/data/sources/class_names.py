"""The names of a dataset's identities, in a text file beside it: one a line, that of class 0 first.

Records have numbers only, and shards perhaps names beside them. train.names goes with train.rec,
and with all shards train-00000-of-00008.rec; one that people wrote themselves is read as well. A
name that holds a line break or a backslash, or is no text, is written with \\n, \\r, \\\\ and \\xff
in it.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kappaface_dist.text_files import read_lines
from kappaface_dist.whole_files import whole_file

logger = logging.getLogger(__name__)
SUFFIX = ".names"
SHARD = re.compile(r"-([0-9]{5})-of-([0-9]{5})$")
ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
WRITTEN = re.compile(r"\\(\\|n|r|x[0-9a-f]{2})")


def names_path(data: Path) -> Path:
    """The file of names of a record or shard."""
    return data.with_name(SHARD.sub("", data.stem) + SUFFIX)


def missing_parts(names: Sequence[str]) -> list[str]:
    """Of files named train-00000-of-00008.rec those that are not there, sorted."""
    missing: set[str] = set()
    for name in names:
        path = Path(name)
        found = SHARD.search(path.stem)
        if found:
            stem = path.stem[: found.start()]
            all_parts = range(int(found[2]))
            missing |= {f"{stem}-{part:05d}-of-{found[2]}{path.suffix}" for part in all_parts}
    return sorted(missing - set(names))


def write_class_names(data: Path, names: Sequence[str] | None) -> None:
    """Write the names beside a dataset, or remove those of one that was there before.

    Args:
        data: a file of the dataset.
        names: by class; None where they are not known.
    """
    path = names_path(data)
    if names is None:
        path.unlink(missing_ok=True)
        return
    with whole_file(path) as unfinished:
        text = "".join(_escaped(name) + "\n" for name in names)
        unfinished.write_text(text, encoding="utf-8")


def read_class_names(data: Path) -> list[str] | None:
    """The names by class; None where there is no such file.

    Raises:
        ValueError: it is not text in UTF-8.
    """
    path = names_path(data)
    if not path.is_file():
        return None
    return [WRITTEN.sub(_unescaped, line) for line in read_lines(path)]


def joined_names(sources: Sequence[Any], num_classes: int) -> list[str] | None:
    """The names by class that the labels of shards give, of all of them together.

    None where a class has none, or two: then they are of something else, as of pictures.
    """
    name_of: dict[int, str] = {}
    for source in sources:
        for label, name in getattr(source, "name_pairs", ()):
            if name_of.setdefault(label, name) != name:
                logger.info(
                    "names beside the labels are not those of classes: %d is %r and %r",
                    *(label, name_of[label], name),
                )
                return None
    if 0 < len(name_of) < num_classes:
        logger.info("%d of %d classes have a name: none is used", len(name_of), num_classes)
        return None
    return [name_of[label] for label in range(num_classes)] if name_of else None


def number_by_names(sources: Sequence[Any]) -> None:
    """Classes that tables give by name get one number in all files of a dataset.

    Raises:
        ValueError: some files give names and some numbers.
    """
    named = [source for source in sources if getattr(source, "named_by_text", False)]
    if not named:
        return
    if len(named) < len(sources):
        numbered = next(source for source in sources if source not in named)
        raise ValueError(
            f"{named[0].where(0)} has a name as label, {numbered.where(0)} a number: give names in"
            " all files, or numbers"
        )
    names = sorted({name for source in named for name in source.class_names})
    logger.info("%d classes are numbered by their names, from %r on", len(names), names[0])
    for source in named:
        source.number_by(names)


def folder_names(names: Sequence[str] | None, num_classes: int) -> list[str]:
    """A name for each class's folder, all different, each one name and none hidden.

    The names of tables and of files of names are other people's: one may hold a slash, or be "..".
    """
    width = len(str(num_classes - 1))
    numbers = [f"{label:0{width}}" for label in range(num_classes)]
    if names is None:
        return numbers
    found = [re.sub("[/\0]", "_", name).lstrip(".") for name in names[:num_classes]]
    taken: set[str] = set()
    for label, name in enumerate(found):
        if not name or name in taken:
            found[label] = f"{name}_{numbers[label]}".lstrip("_")
        taken.add(found[label])
    return found


def _escaped(name: str) -> str:
    for sign, written in ESCAPES.items():
        name = name.replace(sign, written)
    # Bytes of a file's name that are no UTF-8, as Python carries them.
    return re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", name)


def _unescaped(found: re.Match[str]) -> str:
    code = found[1]
    if code[0] == "x":
        return chr(0xDC00 + int(code[1:], 16))
    return {"\\": "\\", "n": "\n", "r": "\r"}[code]
