"""Probes, galleries and distractors of an identification test.

From folders, from MegaFace's lists (JSON), or from TinyFace's (MATLAB).
"""

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.data.sources.base import IMAGE_SUFFIXES
from kappaface_dist.text_files import read_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FaceList:
    """Image files, and the identity of each by name; None for distractors."""

    paths: list[Path]
    names: list[str | None]

    def digest(self) -> str:
        """SHA-256 over the files and identities in order, wherever their folders lie."""
        digest = hashlib.sha256()
        for path, name in zip(self.paths, self.names, strict=True):
            digest.update(f"{path.parent.name}/{path.name}\t{name}\n".encode())
        return digest.hexdigest()


def read_faces(place: str | Path, root: str | Path | None = None) -> FaceList:
    """Read a folder with a folder per identity, or a list like MegaFace's.

    Args:
        place: the folder; or a .json file {"path": [...], "id": [...]}, as
            facescrub_features_list.json is; or TinyFace's probe_img_ID_pairs.mat or
            gallery_match_img_ID_pairs.mat.
        root: what the list's paths are relative to; if not given the list's own folder, or for
            TinyFace's lists the folder Probe or Gallery_Match beside it.

    Raises:
        ValueError: nothing is there, or the list is malformed.
        RuntimeError: a .mat file, and scipy is not installed.
    """
    place = Path(place)
    if place.suffix == ".mat":
        return _read_matlab_list(place, root)
    if place.suffix == ".json":
        content = _read_list(place)
        names = content.get("id")
        if not isinstance(names, list) or len(names) != len(content["path"]):
            raise ValueError(
                f'{place} has no "id" for each "path", which probes and galleries need'
            )
        base = Path(root) if root is not None else place.parent
        return FaceList(
            [base / path for path in content["path"]],
            [identity_name(name, place, number) for number, name in enumerate(names)],
        )
    return _read_folder(place)


def _read_folder(folder: Path) -> FaceList:
    """Every image below the folder of an identity is of that identity, however deep it lies."""
    parts = {path: path.relative_to(folder).parts for path in images_below(folder)}
    names: dict[Path, str | None] = {path: p[0] for path, p in parts.items() if len(p) > 1}
    if not names:
        raise ValueError(
            f"{folder} has {len(parts)} images and no folder of an identity: put each identity's"
            " images into a folder of its own"
        )
    loose = [path.name for path in parts if path not in names]
    if loose:
        logger.warning(
            "%s: %d images lie in no identity's folder and are left out, the first is %s",
            *(folder, len(loose), loose[0]),
        )
    deeper = [path for path in names if len(parts[path]) > 2]
    if deeper:
        logger.warning(
            "%s: %d images lie deeper than an identity's folder and are of that identity, the"
            " first is %s of %s",
            *(folder, len(deeper), deeper[0], names[deeper[0]]),
        )
    return FaceList(list(names), list(names.values()))


def read_distractors(place: str | Path, root: str | Path | None = None) -> FaceList:
    """All images below a folder, or a list like megaface_features_list.json_1000000_1."""
    place = Path(place)
    if place.is_file():
        base = Path(root) if root is not None else place.parent
        paths = [base / path for path in _read_list(place)["path"]]
    else:
        paths = images_below(place)
    return FaceList(paths, [None] * len(paths))


# Variables of TinyFace's lists, and the folder beside them that holds the images.
MATLAB_LISTS = {"probe": "Probe", "gallery": "Gallery_Match"}


def _read_matlab_list(place: Path, root: str | Path | None) -> FaceList:
    """A list of TinyFace: <kind>_set, a column of file names, and <kind>_ids, one of numbers."""
    if not place.is_file():
        raise ValueError(f"there is no file {place}, expected a list of images")
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise RuntimeError(
            f"{place} is read with scipy: pip install 'kappaface_dist[tinyface]'"
        ) from error
    try:
        content = loadmat(place)
    except (MatReadError, ValueError, TypeError, OSError, NotImplementedError) as error:
        raise ValueError(f"{place} is not a readable .mat file: {error}") from error
    for kind, folder in MATLAB_LISTS.items():
        if f"{kind}_set" in content and f"{kind}_ids" in content:
            names = [str(np.ravel(cell)[0]) for cell in content[f"{kind}_set"].ravel()]
            identities = [
                identity_name(np.ravel(cell)[0] if np.size(cell) else None, place, number)
                for number, cell in enumerate(content[f"{kind}_ids"].ravel())
            ]
            if not names or len(names) != len(identities):
                raise ValueError(f"{place} has {len(names)} images and {len(identities)} ids")
            base = Path(root) if root is not None else place.parent / folder
            return FaceList([base / name for name in names], list(identities))
    raise ValueError(
        f"{place} holds {', '.join(k for k in content if not k.startswith('__')) or 'nothing'},"
        " expected probe_set and probe_ids, or gallery_set and gallery_ids, as in TinyFace"
    )


def identity_name(value: Any, place: Path, number: int) -> str:
    """The name of an identity that a list gives as text or as a number of any type.

    MATLAB and JSON write one number as 1 or as 1.0: both are "1".

    Raises:
        ValueError: it is neither text nor a whole number; says where.
    """
    if isinstance(value, str) and value.strip():
        whole = re.fullmatch(r"\s*([0-9]+)\.0*\s*", value)
        return whole[1] if whole else value
    # Whole numbers not by way of a float: they may have more digits than a float holds.
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    raise ValueError(
        f"{place} gives image {number} (counted from 0) the identity {value!r}, expected a name or"
        " a whole number"
    )


def _read_list(place: Path) -> dict[str, list[str]]:
    if not place.is_file():
        raise ValueError(f"there is no file {place}, expected a list of images")
    try:
        content = json.loads(read_text(place))
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not a JSON list of images: {error}") from error
    paths = content.get("path") if isinstance(content, dict) else None
    if not isinstance(paths, list) or not paths or not all(isinstance(p, str) for p in paths):
        raise ValueError(f'{place} holds no list of names under "path"')
    return content


def images_below(folder: Path) -> list[Path]:
    """All image files in a folder and below, sorted; ValueError if there is none."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}, expected one with images in it")
    found = [
        Path(parent) / name
        for parent, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
    ]
    if not found:
        raise ValueError(f"{folder} has no image in it or below")
    return sorted(found)
