"""Decodes images with NVIDIA DALI, on the GPU or on the CPU, fed from our reader in our order.

Threads of ours read, and check each JPEG by a decode at an eighth of its size: that finds exactly
what the CPU loader finds unreadable, at a fraction of the cost, and DALI never meets a file that
would end its pipeline. An image that was good once is not checked again, and
after check_record.py none of a record is. Everything happens in the background, the training thread
only takes batches.
Shapes: B images on this rank, H W the image size.
"""

import importlib.util
import itertools
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import torch

from kappaface_dist.data.augment import PRESETS
from kappaface_dist.data.catalog import Catalog
from kappaface_dist.data.cpu import HostBatch, Request
from kappaface_dist.data.images import JPEG_START, check_jpeg, decode_image
from kappaface_dist.data.readable import Readable

SUBSAMPLINGS = frozenset(("444", "422", "420", "440", "411", "Gray"))
POLL_SECONDS = 0.1


def dali_is_installed() -> bool:
    """Whether NVIDIA DALI can be imported; without importing it."""
    return importlib.util.find_spec("nvidia") is not None and (
        importlib.util.find_spec("nvidia.dali") is not None
    )


@dataclass(frozen=True)
class _Prepared:
    """One image on its way into DALI."""

    payload: np.ndarray  # a good JPEG, or pixels with a PPM header
    resize: bool


class DaliDecoder:
    """Decodes the batches that are asked for, some ahead of the caller; see cpu.CpuDecoder.

    Raises:
        RuntimeError: DALI is not installed.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        batch_size: int,
        image_size: int,
        augment: str,
        num_threads: int,
        device: torch.device,
    ):
        if not dali_is_installed():
            raise RuntimeError(
                "data.loader is 'dali', but NVIDIA DALI is not installed: pip install"
                " 'kappaface_dist[dali]' (Linux), or set data.loader=cpu"
            )
        self._catalog = catalog
        self._batch_size = batch_size
        self._image_size = image_size
        self._preset = PRESETS[augment]
        self._num_threads = num_threads
        self._device = device
        self._readable = Readable(catalog, self._prepare)
        self._good_I = catalog.checked()

    def batches(self, requests: Iterable[Request], ahead: int) -> Generator[HostBatch, None, None]:
        """Decode the requests in order, up to `ahead` of them before they are taken.

        Leaving the iterator ends its threads.

        Raises:
            ValueError: many images in a row are unreadable.
            RuntimeError: DALI fails.
        """
        finished: queue.Queue[HostBatch | Exception | None] = queue.Queue(maxsize=ahead)
        stop = threading.Event()
        thread = threading.Thread(
            target=self._fill, args=(requests, ahead, finished, stop), name="dali", daemon=True
        )
        thread.start()
        try:
            while (item := finished.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                if item.image.is_cuda:
                    # Made on another stream: its memory must not be reused before this one is done.
                    item.image.record_stream(torch.cuda.current_stream(self._device))
                yield item
        finally:
            stop.set()
            thread.join()

    def _fill(
        self,
        requests: Iterable[Request],
        ahead: int,
        finished: "queue.Queue[HostBatch | Exception | None]",
        stop: threading.Event,
    ) -> None:
        """Run in a thread of its own: every decoded batch into the queue, then None."""

        def put(item: HostBatch | Exception | None) -> None:
            while not stop.is_set():
                try:
                    return finished.put(item, timeout=POLL_SECONDS)
                except queue.Full:
                    continue

        try:
            with closing(self._decode(requests, ahead)) as decoded:
                for batch in decoded:
                    put(batch)
                    if stop.is_set():
                        return
            put(None)
        except Exception as error:  # noqa: BLE001 (raised again in the thread that takes batches)
            put(error)

    def _decode(self, requests: Iterable[Request], ahead: int) -> Generator[HostBatch, None, None]:
        from kappaface_dist.data import dali_graph

        device_id = self._device.index or 0 if self._device.type == "cuda" else None
        pipeline = dali_graph.build_pipeline(
            self._preset,
            batch_size=self._batch_size,
            image_size=self._image_size,
            num_threads=self._num_threads,
            device_id=device_id,
        )
        stream = torch.cuda.Stream(self._device) if device_id is not None else None
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="read")
        reading: deque[_Reading] = deque()
        inside: deque[HostBatch] = deque()  # being decoded; their images are still to come
        feeder = dali_graph.Feeder(pipeline)
        requests = iter(requests)
        try:
            while True:
                for request in itertools.islice(requests, ahead + 1 - len(reading)):
                    reading.append(self._submit(pool, request))
                while reading and len(inside) < dali_graph.AHEAD:
                    batch, inputs = self._collect(reading.popleft())
                    inside.append(batch)
                    feeder.feed(inputs)
                if not inside:
                    return
                feeder.complete()
                try:
                    (images,) = pipeline.outputs()
                except RuntimeError as error:
                    text = " ".join(str(error).split())[:300]
                    raise RuntimeError(
                        f"DALI cannot go on ({text}): set data.loader=cpu, and run"
                        " tools/check_record.py if it was an image"
                    ) from error
                batch = inside.popleft()
                _copy(images, batch.image, stream)
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, request: Request) -> "_Reading":
        num = len(request.index_B)
        bounds = np.linspace(0, num, min(self._num_threads, num) + 1).astype(int)
        return _Reading(
            request,
            [
                pool.submit(self._read, request.index_B[first:end])
                for first, end in itertools.pairwise(bounds)
            ],
        )

    def _read(self, index_B: np.ndarray) -> "_Read":
        unreadable: dict[int, str] = {}
        found = [self._readable.first(index, unreadable) for index in index_B.tolist()]
        taken_B = np.array([taken for taken, _ in found])
        prepared = [image for _, image in found]
        return _Read(prepared, taken_B, int((taken_B != index_B).sum()), unreadable)

    def _collect(self, reading: "_Reading") -> tuple[HostBatch, dict[str, Any]]:
        """The batch without its pixels, and what DALI makes them from."""
        from kappaface_dist.data import dali_graph

        parts = [task.result() for task in reading.tasks]
        images = [image for part in parts for image in part.images]
        inputs: dict[str, Any] = dali_graph.change_inputs(
            self._preset, reading.request.changes, self._image_size
        )
        inputs[dali_graph.PAYLOAD] = [image.payload for image in images]
        inputs[dali_graph.RESIZE] = np.array([image.resize for image in images])
        unreadable = {key: why for part in parts for key, why in part.unreadable.items()}
        size = self._image_size
        taken_B = np.concatenate([part.taken_B for part in parts])
        batch = HostBatch(
            torch.empty((len(images), 3, size, size), device=self._device),
            torch.from_numpy(self._catalog.label_I[taken_B].astype(np.int64)),
            sum(part.num_replaced for part in parts),
            unreadable,
        )
        return batch, inputs

    def _prepare(self, index: int) -> _Prepared:
        """Read one image and see that it can be decoded; ValueError or OSError if not."""
        payload, size = self._catalog.read(index), self._image_size
        if payload[:2] == JPEG_START:
            try:
                height, width, colours, subsampling = simplejpeg.decode_jpeg_header(payload)
            except ValueError as error:
                raise ValueError(f"not a readable image ({error})") from error
            if colours in ("YCbCr", "Gray", "RGB") and subsampling in SUBSAMPLINGS:
                if not self._good_I[index]:
                    check_jpeg(payload)
                    self._good_I[index] = True
                return _Prepared(np.frombuffer(payload, np.uint8), (height, width) != (size, size))
        # Rare formats are decoded as the CPU loader does it; DALI gets the pixels.
        pixels_HW3 = decode_image(payload, size)
        ppm = b"P6\n%d %d\n255\n" % (size, size) + pixels_HW3.tobytes()
        return _Prepared(np.frombuffer(ppm, np.uint8), False)


def _copy(images: Any, out_B3HW: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
    """Copy DALI's output, and wait for that: the memory is DALI's again afterwards."""
    from nvidia.dali.plugin.pytorch import feed_ndarray

    feed_ndarray(images.as_tensor(), out_B3HW, cuda_stream=stream)
    if stream is not None:
        stream.synchronize()


@dataclass(frozen=True)
class _Read:
    images: list[_Prepared]
    taken_B: np.ndarray
    num_replaced: int
    unreadable: dict[int, str]


@dataclass(frozen=True)
class _Reading:
    request: Request
    tasks: list[Future[_Read]]
