"""Keeps what was learnt about a dataset (where its images lie, their labels) for the next start.

A cache file is a line of JSON (fingerprint of the source, checksum, names and shapes of arrays),
padded, followed by the arrays themselves, which are memory-mapped when it is read. No code can come
out of it, and one that is cut off, altered or about another state of the source is made anew.
"""

import json
import logging
import math
import os
import zlib
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np

from kappaface_dist.whole_files import whole_file

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
FORMAT = "kappaface index 2"
SUFFIX = ".kfindex"
ALIGNMENT = 64
END_BYTES = 1 << 16  # of a file's head and tail, that its stamp is made of


def file_stamp(*paths: Path) -> str:
    """Changes when one of the files does: size, time, and a checksum over head and tail of each."""
    parts = []
    for path in paths:
        with path.open("rb") as stream:
            stat = os.fstat(stream.fileno())
            checksum = zlib.crc32(stream.read(END_BYTES))
            stream.seek(max(0, stat.st_size - END_BYTES))
            checksum = zlib.crc32(stream.read(END_BYTES), checksum)
        parts.append(f"{stat.st_size}:{stat.st_mtime_ns}:{checksum:08x}")
    return " ".join(parts)


def load_or_build(
    source: Path,
    fingerprint: str,
    build: Callable[[], Arrays],
    check: Callable[[Arrays], None] = lambda arrays: None,
) -> Arrays:
    """The arrays that build() makes of source, from a cache file if one fits the fingerprint.

    The cache lies beside the source (inside it for a folder), or, where that is read-only, in
    $KAPPAFACE_CACHE or ~/.cache/kappaface_dist.

    Args:
        source: a file or a folder.
        fingerprint: of its present state, as file_stamp() makes one.
        build: makes the arrays from the source.
        check: ValueError, KeyError or TypeError if cached arrays cannot be those of the source.
    """
    places = cache_paths(source)
    for path in places:
        cached = read(path, fingerprint)
        if cached is not None:
            try:
                check(cached)
            except (ValueError, KeyError, TypeError) as error:
                logger.warning("the cached index %s is made anew: %s", path, error)
            else:
                return cached
    arrays = build()
    for path in places:
        try:
            write(path, fingerprint, arrays)
        except OSError:
            continue
        # Read back: the mapped file is shared by all processes, the built arrays are not.
        return read(path, fingerprint) or arrays
    logger.warning("the index of %s cannot be kept: no place of %s is writable", source, places)
    return arrays


def keep(source: Path, fingerprint: str, arrays: Arrays, suffix: str) -> bool:
    """Write arrays to the first place that is writable; whether there is one."""
    for path in cache_paths(source, suffix):
        try:
            write(path, fingerprint, arrays)
        except OSError:
            continue
        return True
    return False


def recall(source: Path, fingerprint: str, suffix: str) -> Arrays | None:
    """What keep() wrote for this state of the source; None if nothing did."""
    for path in cache_paths(source, suffix):
        arrays = read(path, fingerprint)
        if arrays is not None:
            return arrays
    return None


def check_layout(arrays: Arrays, layout: Mapping[str, str]) -> None:
    """ValueError if they are not one-dimensional arrays of these names and types."""
    found = {name: array.dtype.str for name, array in arrays.items() if array.ndim == 1}
    if found != layout:
        raise ValueError(f"it holds {found}, expected {dict(layout)}")


def cache_paths(source: Path, suffix: str = SUFFIX) -> list[Path]:
    """Where the cache of source may lie, in order of preference."""
    beside = source / suffix if source.is_dir() else source.with_name(source.name + suffix)
    folder = os.environ.get("KAPPAFACE_CACHE") or Path.home() / ".cache" / "kappaface_dist"
    name = sha256(os.fsencode(source.resolve())).hexdigest()[:32]
    return [beside, Path(folder) / (name + suffix)]


def write(path: Path, fingerprint: str, arrays: Arrays) -> None:
    """Write the arrays to path, all or nothing."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "checksum": _checksum(contiguous),
        "arrays": [[name, array.dtype.str, array.shape] for name, array in contiguous.items()],
    }
    # Several machines may write into one shared folder at once.
    with whole_file(path, shared=True) as unfinished:
        with unfinished.open("wb") as stream:
            stream.write(_padded(json.dumps(header).encode() + b"\n"))
            for array in contiguous.values():
                stream.write(array.data)
                stream.write(bytes(-array.nbytes % ALIGNMENT))
        unfinished.chmod(0o644)


def read(path: Path, fingerprint: str) -> Arrays | None:
    """The arrays in a cache file; None where it is absent, damaged or of another fingerprint."""
    try:
        with path.open("rb") as stream:
            line = stream.readline(1 << 16)
            header = json.loads(line)
            if header["format"] != FORMAT or header["fingerprint"] != fingerprint:
                return None
        at = len(_padded(line))
        arrays: Arrays = {}
        for name, dtype, shape in header["arrays"]:
            # An array of objects would be read as addresses.
            if np.dtype(dtype).kind not in "biuf" or not all(side >= 0 for side in shape):
                raise ValueError(f"{name} is said to be {dtype} {shape}")
            num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
            if num_bytes:
                arrays[name] = np.memmap(path, dtype, "r", offset=at, shape=tuple(shape))
            else:  # nothing cannot be mapped
                arrays[name] = np.empty(shape, dtype)
            at += num_bytes + -num_bytes % ALIGNMENT
        if _checksum(arrays) == header["checksum"]:
            return arrays
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        logger.warning("the cached index %s is unusable and made anew (%s)", path, error)
        return None
    logger.warning("the cached index %s is damaged and made anew", path)
    return None


def _checksum(arrays: Arrays) -> int:
    checksum = 0
    for array in arrays.values():
        checksum = zlib.crc32(array.data if array.size else b"", checksum)
    return checksum


def _padded(line: bytes) -> bytes:
    return line + bytes(-len(line) % ALIGNMENT)
