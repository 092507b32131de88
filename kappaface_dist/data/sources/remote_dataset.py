"""Datasets in object storage, through a cache on this machine's disk.

Where all of it fits, each file is brought at the start and read as any other. Where it does not,
the stream is read by the block: files come when a block of theirs is due and go when others need
the room; what all of them hold is known from a first pass. The order of the images is the same.
Shapes: F files, B blocks of the stream.
"""

import logging
import os
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from kappaface_dist.data.sources.base import WINDOW_BLOCKS, Source
from kappaface_dist.data.sources.remote_cache import GIGABYTE, RemoteCache
from kappaface_dist.data.sources.remote_source import Opener, RemoteSource, Shelf
from kappaface_dist.data.sources.remote_store import CacheSettings, RemoteFile
from kappaface_dist.parallel.cores import local_world_size

logger = logging.getLogger(__name__)
S = TypeVar("S")

NUM_THREADS = 8  # that bring files
MAX_OPEN = 16384  # of descriptors; maps of a process are bounded too
DESCRIPTORS_EACH = 8  # of an open file, its index and its pin
SAY_SECONDS = 30.0


def open_remote(
    files: Sequence[RemoteFile], settings: CacheSettings, opener: Opener, block: int
) -> list[Source]:
    """Open the files of a dataset, in their order.

    Args:
        opener: opens a file on the disk.
        block: images per block of the stream; 0 where it is shuffled over all of them.

    Raises:
        ValueError: the dataset does not fit into the cache, and is not read by the block.
        RuntimeError: a file cannot be brought.
    """
    cache = RemoteCache(settings)
    total, largest = (f(file.num_bytes or 0 for file in files) for f in (sum, max))
    fits = total <= cache.max_bytes
    logger.info(
        "%d files of %.3g GB, %s first, are read through the cache %s",
        *(len(files), total / GIGABYTE, files[0], cache.folder),
    )
    unversioned = [file for file in files if not file.version]
    if unversioned:
        logger.warning(
            "the server gives %d of %d files neither ETag nor time (%s first): whether one in the"
            " cache is the present one is told by its size alone",
            *(len(unversioned), len(files), unversioned[0]),
        )
    if largest > cache.max_bytes:
        raise ValueError(
            f"a file of the dataset has {largest / GIGABYTE:.4g} GB, is kept whole, and"
            f" data.cache_gigabytes is {cache.max_bytes / GIGABYTE:g}: raise it"
        )
    if not fits and not block:
        raise ValueError(_too_small(total, cache, "data.block_shuffle is 0", total))
    num_open = _raise_open_files() // DESCRIPTORS_EACH

    # What comes at once must have room: half of the cache, shared by the processes.
    at_once = cache.max_bytes // (2 * max(largest, 1)) // local_world_size()
    num_threads = max(1, min(NUM_THREADS, at_once))

    def open_kept(file: RemoteFile) -> Source:
        with cache.kept(file) as path:
            cache.bring_beside(file)
            return opener(path)

    if fits and len(files) <= num_open:
        return _with_all(files, open_kept, num_threads)
    max_bytes = total if fits else cache.max_bytes // 2
    shelf = Shelf(cache, opener, max_bytes=max_bytes, max_files=num_open)
    sources = _with_all(files, lambda file: RemoteSource(file, shelf), num_threads)
    if not fits:
        _check_window(files, sources, cache, block)
    return [*sources]


def _check_window(
    files: Sequence[RemoteFile], sources: Sequence[Source], cache: RemoteCache, block: int
) -> None:
    """ValueError where files would have to come again and again within a window of the stream."""
    end_F = np.cumsum([len(source.label_I) for source in sources])
    first_B = np.arange(0, int(end_F[-1]), block)
    last_B = np.minimum(first_B + block, end_F[-1]) - 1
    # side="right": a file's end is the first image of the next one.
    files_B = np.searchsorted(end_F, last_B, "right") - np.searchsorted(end_F, first_B, "right") + 1
    total, largest = (f(file.num_bytes or 0 for file in files) for f in (sum, max))
    # One window's files stay while the next one's come.
    need = min(total, 2 * WINDOW_BLOCKS * int(files_B.max()) * largest)
    if need > cache.max_bytes:
        raise ValueError(_too_small(total, cache, f"data.block_shuffle is {block}", need))
    logger.info(
        "the cache is smaller than the dataset: on each machine a file is brought about %.1f times"
        " an epoch; data.block_shuffle at the images of a file (%d here) makes it fewest",
        *(files_B.sum() / len(files), int(end_F[0])),
    )


def _too_small(total: int, cache: RemoteCache, setting: str, need: int) -> str:
    return (
        f"the dataset has {total / GIGABYTE:.4g} GB, data.cache_gigabytes is"
        f" {cache.max_bytes / GIGABYTE:g} and {setting}, so that a batch needs images from more"
        f" files than the cache holds: set data.cache_gigabytes to {need / GIGABYTE:.4g} or more,"
        " or data.block_shuffle to at most the images of a file"
    )


def _with_all(
    files: Sequence[RemoteFile], call: Callable[[RemoteFile], S], num_threads: int
) -> list[S]:
    """call(file) for all, in threads; results in their order.

    The processes of a machine begin at different files: what one brings the others find.
    """
    first = len(files) * int(os.environ.get("LOCAL_RANK", "0")) // local_world_size()
    order = [*range(first, len(files)), *range(first)]
    results: dict[int, S] = {}
    said = time.monotonic()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for number, result in zip(
                order, pool.map(lambda i: call(files[i]), order), strict=True
            ):
                results[number] = result
                if time.monotonic() - said > SAY_SECONDS:
                    said = time.monotonic()
                    logger.info("%d of %d files are here", len(results), len(files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[number] for number in range(len(files))]


def _raise_open_files() -> int:
    """How many files this process may open, after asking for as many as it is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(hard, MAX_OPEN) if hard != resource.RLIM_INFINITY else MAX_OPEN
