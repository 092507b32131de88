"""Decodes images with a pool of threads; libjpeg-turbo works outside Python's lock.

Shapes: B images on this rank, H W the image size.
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch

from kappaface_dist.data.images import decode_image
from kappaface_dist.data.loading.augment import Changes
from kappaface_dist.data.loading.augment_cpu import apply_changes
from kappaface_dist.data.loading.buffers import Buffers
from kappaface_dist.data.loading.readable import Readable
from kappaface_dist.data.normalisation import normalise_image
from kappaface_dist.data.sources.catalog import Catalog

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Request:
    """What to read for one batch."""

    index_B: np.ndarray  # images of the catalog
    changes: Changes  # what to do to them


@dataclass(frozen=True)
class HostBatch:
    """One decoded batch, in host memory, or on the device if DALI decodes there."""

    image: torch.Tensor  # uint8 [B, H, W, 3], or normalised float32 [B, 3, H, W]
    taken_B: np.ndarray  # images of the catalog, int64
    replaced_B: np.ndarray  # bool: unreadable, another image taken instead
    unreadable: dict[int, str] = field(default_factory=dict)  # image of the catalog -> why


class CpuDecoder:
    """Decodes the batches that are asked for, some ahead of the caller.

    An unreadable image is replaced by the next readable one of the catalog.

    Args:
        catalog: the dataset.
        batch_size: images per batch.
        image_size: height and width of the pixels.
        num_threads: that read, decode and change.
        for_gpu: give uint8, a quarter of the bytes to copy and normalised there, all of it in
            pinned memory; otherwise the threads normalise, too.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        batch_size: int,
        image_size: int,
        num_threads: int,
        for_gpu: bool,
    ):
        self._image_size = image_size
        self._num_threads = num_threads
        self._for_gpu = for_gpu
        self._images = Buffers((batch_size, 3, image_size, image_size), np.float32)
        self._readable = Readable(
            catalog, lambda index: decode_image(catalog.read(index), image_size)
        )

    def batches(self, requests: Iterable[Request], ahead: int) -> Generator[HostBatch, None, None]:
        """Decode the requests in order, up to `ahead` of them before they are taken.

        Leaving the iterator ends its threads.

        Raises:
            ValueError: many images in a row are unreadable.
        """
        return run_ahead(self._submit, requests, ahead, self._num_threads)

    def _submit(self, pool: ThreadPoolExecutor, request: Request) -> "_Pending":
        num, size = len(request.index_B), self._image_size
        if self._for_gpu:
            image = torch.empty((num, size, size, 3), dtype=torch.uint8, pin_memory=True)
        else:
            image = torch.from_numpy(self._images.take())
        taken_B = request.index_B.copy()
        tasks = [
            pool.submit(
                self._decode,
                request.index_B[first:end],
                request.changes.part(first, end),
                image.numpy()[first:end],
                taken_B[first:end],
            )
            for first, end in split(num, self._num_threads)
        ]
        return _Pending(image, taken_B, request.index_B, tasks)

    def _decode(
        self,
        index_B: np.ndarray,
        changes: Changes,
        image_B: np.ndarray,
        taken_B: np.ndarray,
    ) -> dict[int, str]:
        """Fill the last two arrays; which images were unreadable."""
        unreadable: dict[int, str] = {}
        for i, index in enumerate(index_B.tolist()):
            taken_B[i], pixels_HW3 = self._readable.first(index, unreadable)
            pixels_HW3 = apply_changes(pixels_HW3, changes, i)
            if self._for_gpu:
                image_B[i] = pixels_HW3
            else:
                normalise_image(pixels_HW3, image_B[i])
        return unreadable


@dataclass(frozen=True)
class _Pending:
    image: torch.Tensor
    taken_B: np.ndarray
    index_B: np.ndarray
    tasks: list[Future[dict[int, str]]]

    def wait(self) -> HostBatch:
        unreadable: dict[int, str] = {}
        for task in self.tasks:
            unreadable |= task.result()
        replaced_B = self.taken_B != self.index_B
        return HostBatch(self.image, self.taken_B, replaced_B, unreadable)


class Pending(Protocol[T_co]):
    """A batch that a pool of threads works on."""

    def wait(self) -> T_co:
        """Return the batch when it is finished."""


def run_ahead(
    submit: Callable[[ThreadPoolExecutor, Request], Pending[T_co]],
    requests: Iterable[Request],
    ahead: int,
    num_threads: int,
) -> Generator[T_co, None, None]:
    """Yield what becomes of the requests, in order; up to `ahead` of them before they are taken.

    Leaving the iterator ends its threads.

    Args:
        submit: begins the work on one request.
        requests: taken as they are needed.
        ahead: as said.
        num_threads: of the pool.
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    pending: deque[Pending[T_co]] = deque()
    try:
        for request in requests:
            pending.append(submit(pool, request))
            if len(pending) > ahead:
                yield pending.popleft().wait()
        while pending:
            yield pending.popleft().wait()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def split(num: int, num_threads: int) -> Iterable[tuple[int, int]]:
    """First and end of each thread's part of a batch.

    One task per thread: fewer hand-overs than one per image, and still all threads busy.
    """
    return itertools.pairwise(np.linspace(0, num, min(num_threads, num) + 1).astype(int).tolist())
