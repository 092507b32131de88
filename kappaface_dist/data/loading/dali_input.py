"""Reads what DALI is fed with: JPEGs where it decodes them, otherwise pixels.

On the GPU DALI decodes. Threads of ours read, and check each JPEG by a decode at an eighth of its
size: that finds exactly what the CPU loader finds unreadable, and DALI, which takes many a damaged
file for good, never meets one that would end its pipeline. An image that was good once is only
read from then on, and after check_record.py none of a record is decoded here.
On the CPU that would be the same work twice, so the threads decode, as those of the CPU loader do.
Shapes: B images on this rank, H W the image size.
"""

from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg

from kappaface_dist.data.images import check_jpeg, check_size, decode_image
from kappaface_dist.data.jpeg_header import JPEG_START, read_jpeg_header
from kappaface_dist.data.loading.buffers import Buffers
from kappaface_dist.data.loading.cpu import Request, run_ahead, split
from kappaface_dist.data.loading.readable import Readable
from kappaface_dist.data.sources.catalog import Catalog

SUBSAMPLINGS = frozenset(("444", "422", "420", "440", "411", "Gray"))
# What an image that was looked at is: for DALI to decode as it is, or to resize, too.
UNKNOWN, AS_IT_IS, TO_RESIZE = range(3)


@dataclass(frozen=True)
class Payload:
    """One image for DALI to decode."""

    encoded: np.ndarray  # a good JPEG, or pixels with a PPM header
    resize: bool


@dataclass(frozen=True)
class DaliInput:
    """One batch for DALI."""

    request: Request
    image_B: np.ndarray  # of Payload, or uint8 pixels [B, H, W, 3]
    taken_B: np.ndarray  # images of the catalog: the requested ones or their replacements
    unreadable: dict[int, str]  # image of the catalog -> why


class DaliInputReader:
    """Reads the batches that are asked for, some ahead of the caller.

    Args:
        catalog: the dataset.
        batch_size: images per batch.
        image_size: height and width of the pixels.
        num_threads: that read, and check or decode.
        decode: give pixels, not JPEGs.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        batch_size: int,
        image_size: int,
        num_threads: int,
        decode: bool,
    ):
        self._num_threads = num_threads
        self._decode = decode
        self._pixels = Buffers((batch_size, image_size, image_size, 3), np.uint8)
        self._readable: Readable[Any]
        if decode:
            self._readable = Readable(catalog, lambda i: decode_image(catalog.read(i), image_size))
        else:
            self._readable = Readable(catalog, _Payloads(catalog, image_size).load)

    def batches(self, requests: Iterable[Request], ahead: int) -> Generator[DaliInput, None, None]:
        """Read for the requests in order, up to `ahead` of them before they are taken.

        Leaving the iterator ends its threads.

        Raises:
            ValueError: many images in a row are unreadable.
        """
        return run_ahead(self._submit, requests, ahead, self._num_threads)

    def _submit(self, pool: ThreadPoolExecutor, request: Request) -> "_Pending":
        num = len(request.index_B)
        image_B = self._pixels.take() if self._decode else np.empty(num, object)
        taken_B = request.index_B.copy()
        tasks = [
            pool.submit(self._read, taken_B[first:end], image_B[first:end])
            for first, end in split(num, self._num_threads)
        ]
        return _Pending(request, image_B, taken_B, tasks)

    def _read(self, taken_B: np.ndarray, image_B: np.ndarray) -> dict[int, str]:
        """Fill the arrays, given the images asked for in the first; which were unreadable."""
        unreadable: dict[int, str] = {}
        for i, index in enumerate(taken_B.tolist()):
            taken_B[i], image_B[i] = self._readable.first(index, unreadable)
        return unreadable


class _Payloads:
    """Images as DALI can decode them."""

    def __init__(self, catalog: Catalog, image_size: int):
        self._catalog = catalog
        self._image_size = image_size
        self._good_I = catalog.checked()
        self._known_I = np.full(len(self._good_I), UNKNOWN, np.uint8)

    def load(self, index: int) -> Payload:
        """Read one image and see that it can be decoded; ValueError or OSError if not."""
        payload, size = self._catalog.read(index), self._image_size
        if known := self._known_I[index]:
            return Payload(np.frombuffer(payload, np.uint8), bool(known == TO_RESIZE))
        if payload[:2] == JPEG_START:
            header = read_jpeg_header(payload)
            check_size(header.height, header.width)
            try:
                height, width, colours, subsampling = simplejpeg.decode_jpeg_header(payload)
            except ValueError as error:
                raise ValueError(f"not a readable image ({error})") from error
            usual = colours in ("YCbCr", "Gray", "RGB") and subsampling in SUBSAMPLINGS
            if usual and header.orientation == 1:
                if not self._good_I[index]:
                    check_jpeg(payload)
                resize = (height, width) != (size, size)
                self._known_I[index] = TO_RESIZE if resize else AS_IT_IS
                return Payload(np.frombuffer(payload, np.uint8), resize)
        # Rare formats and what is stored turned are decoded as by the CPU loader: DALI gets pixels.
        pixels_HW3 = decode_image(payload, size)
        ppm = b"P6\n%d %d\n255\n" % (size, size) + pixels_HW3.tobytes()
        return Payload(np.frombuffer(ppm, np.uint8), False)


@dataclass(frozen=True)
class _Pending:
    request: Request
    image_B: np.ndarray
    taken_B: np.ndarray
    tasks: list[Future[dict[int, str]]]

    def wait(self) -> DaliInput:
        unreadable: dict[int, str] = {}
        for task in self.tasks:
            unreadable |= task.result()
        return DaliInput(self.request, self.image_B, self.taken_B, unreadable)
