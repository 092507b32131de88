"""Which files, or which folder, a dataset is, and with which kind of source each is read."""

import glob
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from kappaface_dist.data.sources.base import Source
from kappaface_dist.data.sources.class_names import missing_parts
from kappaface_dist.data.sources.folder import FolderSource
from kappaface_dist.data.sources.record import RecordSource
from kappaface_dist.data.sources.remote_listing import find_remote
from kappaface_dist.data.sources.remote_store import CacheSettings, RemoteFile, is_remote
from kappaface_dist.data.sources.table_source import TableSource
from kappaface_dist.data.sources.tar_source import TarSource

logger = logging.getLogger(__name__)

# Kinds of dataset file, by the end of the name.
FILE_SOURCES: dict[str, Callable[[Path], Source]] = {
    ".rec": RecordSource,
    ".tar": TarSource,
    ".parquet": TableSource,
    ".arrow": TableSource,
}
Train = str | Path | Sequence[str | Path]
Part = Path | RemoteFile


def find_sources(train: Train) -> list[Part]:
    """The files or the folder that `train` of open_catalog() means, without opening them."""
    parts = _find(train)
    missing = missing_parts([part.name for part in parts])
    if missing:
        logger.warning(
            "%s is not among the files of the dataset, nor are %d others that their names speak of",
            *(missing[0], len(missing) - 1),
        )
    return parts


def _find(train: Train) -> list[Part]:
    if not isinstance(train, (str, Path)):
        if not train:
            raise ValueError("the list of record files is empty: name at least one .rec file")
        parts = [part for item in train for part in _find(item)]
        folders = [part for part in parts if isinstance(part, Path) and part.is_dir()]
        if folders and len(parts) > 1:
            raise ValueError(
                f"{folders[0]} is a folder in a list of datasets, only files can be listed:"
                " write it as a record with tools/make_record.py"
            )
        return parts
    if is_remote(train):
        return [*find_remote(str(train))]
    path = Path(train)
    if path.is_dir():
        if (path / "train.rec").is_file():
            return [path / "train.rec"]
        for suffix in FILE_SOURCES:
            if files := sorted(path.glob(f"*{suffix}")):
                return [*files]
        return [path]
    if path.is_file():
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(train), recursive=True))
    if not found:
        raise ValueError(
            f"there is no dataset at {train}: give the path of a .rec, .tar, .parquet or .arrow"
            " file, a pattern that matches some, a folder with one folder of images per identity,"
            " or an address (s3://, gs://, https://) of a .rec or .tar file"
        )
    return [*found]


def open_sources(parts: Sequence[Part], cache: CacheSettings, block: int) -> list[Source]:
    """Open each, in this order; block as in open_catalog()."""
    remote = [part for part in parts if isinstance(part, RemoteFile)]
    opened: dict[RemoteFile, Source] = {}
    if remote:
        # flock and limits of files are Unix's.
        from kappaface_dist.data.sources.remote_dataset import open_remote

        opened = dict(zip(remote, open_remote(remote, cache, open_source, block), strict=True))
    return [opened[part] if isinstance(part, RemoteFile) else open_source(part) for part in parts]


def open_source(path: Path) -> Source:
    """Open one file or folder."""
    if path.is_dir():
        return FolderSource(path)
    if path.suffix not in FILE_SOURCES:
        kinds = ", ".join(FILE_SOURCES)
        raise ValueError(
            f"{path} is not a dataset file ({kinds}): give one of those, or a folder with one"
            " folder of images per identity"
        )
    return FILE_SOURCES[path.suffix](path)
