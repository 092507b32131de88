"""Which files of a dataset lie at an address in object storage."""

import fnmatch
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from kappaface_dist.data.sources.class_names import missing_parts, names_path
from kappaface_dist.data.sources.remote_store import (
    RefusedError,
    RemoteFile,
    filesystem,
    is_web,
    look,
    masked,
    path_of,
    remote_file,
    with_tries,
)

logger = logging.getLogger(__name__)
NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAGIC = re.compile(r"[*?\[]")
SUFFIXES = (".rec", ".tar")
MAX_NUMBERED = 10_000_000
NUM_THREADS = 16  # that ask for one file each


def find_remote(train: str) -> list[RemoteFile]:
    """The .rec or .tar files that an address means, in the order of their names.

    Args:
        train: of a file; a pattern with * or ? in its last part; a folder that holds train.rec or
            such files of one kind; with {0000..0015} for consecutive numbers.

    Raises:
        ValueError: nothing is there, or one of the files that are named is not.
        RuntimeError: the storage cannot be asked.
    """
    urls = list(numbered(train))
    is_pattern = MAGIC.search(urls[0].partition("?")[0] if is_web(urls[0]) else urls[0])
    if is_web(urls[0]) and (is_pattern or path_of(urls[0]).suffix not in SUFFIXES):
        raise ValueError(
            f"data.train is {masked(train)}, and the web has no lists of files: give addresses of"
            " .rec or .tar files, consecutive numbers in them as {0000..0015}"
        )
    if is_pattern or path_of(urls[0]).suffix not in SUFFIXES:
        return [file for url in urls for file in _find_listed(url)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(_find_file, urls))


def numbered(url: str) -> Iterator[str]:
    """The addresses that {0000..0015} stands for, numbers as wide as the first is written."""
    found = NUMBERS.search(url)
    if found is None:
        yield url
        return
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + MAX_NUMBERED:
        raise ValueError(f"data.train has the numbers {found[0]}, expected first..last: correct it")
    for number in range(first, last + 1):
        written = f"{number:0{len(found[1])}}"
        yield from numbered(url[: found.start()] + written + url[found.end() :])


def _find_file(url: str) -> RemoteFile:
    file = look(url)
    if file is None:
        raise ValueError(
            f"there is no file {masked(url)}: check the address, or upload what is missing"
        )
    return _with_beside(file, _look_beside)


def _look_beside(url: str) -> RemoteFile | None:
    """A file that may be there; a storage may not tell, and refuse what it does not have."""
    try:
        return look(url)
    except RefusedError as error:
        logger.debug("taken as absent: %s", error)
        return None


def _find_listed(url: str) -> list[RemoteFile]:
    """The files of a pattern or a folder."""
    folder, _, last = url.rstrip("/").rpartition("/")
    if not MAGIC.search(last):
        folder, last = url.rstrip("/"), ""
    if MAGIC.search(folder):
        raise ValueError(
            f"data.train is {url}: * and ? can stand in the last part of an address only"
        )
    store = filesystem(url)
    protocol = url.partition("://")[0]
    try:
        entries = with_tries(f"listing {masked(folder)}", lambda: store.ls(folder, detail=True))
    except FileNotFoundError:
        entries = []
    listed = {
        entry["name"].rpartition("/")[2]: remote_file(f"{protocol}://{entry['name']}", entry)
        for entry in entries
        if entry["type"] == "file"
    }
    names = sorted(name for name in listed if PurePosixPath(name).suffix in SUFFIXES)
    if last:
        names = [name for name in names if fnmatch.fnmatchcase(name, last)]
    elif "train.rec" in listed:
        names = ["train.rec"]
    elif names:
        kinds = [kind for kind in SUFFIXES if any(name.endswith(kind) for name in names)]
        names = [name for name in names if name.endswith(kinds[0])]
    if not names:
        raise ValueError(
            f"there is no .rec or .tar file at {masked(url)} ({len(listed)} files in the folder):"
            " check the address; other kinds of dataset are read from a disk only"
        )
    in_folder = {file.url: file for file in listed.values()}
    missing = missing_parts(names)
    if missing and not last:
        raise ValueError(
            f"{masked(url)} has {len(names)} parts of a dataset, and {missing[0]} is not among them"
            f" ({len(missing)} are missing): upload them, or name those that are meant by a pattern"
        )
    return [_with_beside(listed[name], in_folder.get) for name in names]


def _with_beside(file: RemoteFile, look: Callable[[str], RemoteFile | None]) -> RemoteFile:
    """The file with those that belong to it, as look() finds them."""
    path = path_of(file.url)
    names = [names_path(Path(path.name)).name]
    if path.suffix == ".rec":
        names += [f"{path.stem}.idx", "property"]
    if is_web(file.url) and "?" in file.url:
        return file  # what is signed there is this one file
    found = (look(file.url[: -len(path.name)] + name) for name in names)
    beside = tuple(other for other in found if other is not None)
    return RemoteFile(file.url, file.num_bytes, file.version, beside)
