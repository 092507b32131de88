"""Decodes images with NVIDIA DALI, on the GPU or on the CPU, fed from our reader in our order.

What DALI is fed with is read by dali_input.py, what it does is in dali_graph.py. Everything happens
in the background, the training thread only takes batches.
Shapes: B images on this rank, H W the image size.
"""

import importlib.util
import itertools
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Any

import numpy as np
import torch

from kappaface_dist.data.loading.augment import PRESETS
from kappaface_dist.data.loading.buffers import Buffers
from kappaface_dist.data.loading.cpu import HostBatch, Request
from kappaface_dist.data.loading.dali_input import DaliInput, DaliInputReader
from kappaface_dist.data.sources.catalog import Catalog

POLL_SECONDS = 0.1


def dali_is_installed() -> bool:
    """Whether NVIDIA DALI can be imported; without importing it."""
    return importlib.util.find_spec("nvidia") is not None and (
        importlib.util.find_spec("nvidia.dali") is not None
    )


class DaliDecoder:
    """Decodes the batches that are asked for, some ahead of the caller; see cpu.CpuDecoder.

    Args:
        catalog: the dataset.
        batch_size: images per batch.
        image_size: height and width of the pixels.
        augment: name of a preset in augment.py.
        num_threads: that read, and as many of DALI's.
        device: where DALI works and the batches go.
        dali_decodes: give JPEGs to DALI; otherwise the threads that read decode them.

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
        dali_decodes: bool,
    ):
        if not dali_is_installed():
            raise RuntimeError(
                "data.loader is 'dali', but NVIDIA DALI is not installed: pip install"
                " 'kappaface_dist[dali]' (Linux), or set data.loader=cpu"
            )
        self._batch_size = batch_size
        self._image_size = image_size
        self._preset = PRESETS[augment]
        self._num_threads = num_threads
        self._device = device
        self._dali_decodes = dali_decodes
        self._images = Buffers((batch_size, 3, image_size, image_size), np.float32)
        self._reader = DaliInputReader(
            catalog,
            batch_size=batch_size,
            image_size=image_size,
            num_threads=num_threads,
            decode=not dali_decodes,
        )

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
                if self._device.type == "cuda":
                    # Its memory is the copying stream's, which must not have it back before the
                    # stream that trains is done with it.
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
        from kappaface_dist.data.loading import dali_graph

        device_id = self._device.index or 0 if self._device.type == "cuda" else None
        pipeline = dali_graph.build_pipeline(
            self._preset,
            batch_size=self._batch_size,
            image_size=self._image_size,
            num_threads=self._num_threads,
            device_id=device_id,
            decode=self._dali_decodes,
        )
        stream = torch.cuda.Stream(self._device) if device_id is not None else None
        inside: deque[HostBatch] = deque()  # being decoded; their images are still to come
        feeder = dali_graph.Feeder(pipeline)
        with closing(self._reader.batches(requests, ahead)) as reading:
            while True:
                for read in itertools.islice(reading, dali_graph.AHEAD - len(inside)):
                    inside.append(self._without_pixels(read, stream))
                    feeder.feed(self._inputs(read))
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

    def _inputs(self, read: DaliInput) -> dict[str, Any]:
        """What DALI makes the pixels from."""
        from kappaface_dist.data.loading import dali_graph

        inputs: dict[str, Any] = dali_graph.change_inputs(
            self._preset, read.request.changes, self._image_size
        )
        if self._dali_decodes:
            inputs[dali_graph.PAYLOAD] = [image.encoded for image in read.image_B]
            inputs[dali_graph.RESIZE] = np.array([image.resize for image in read.image_B])
        else:
            inputs[dali_graph.PAYLOAD] = read.image_B
        return inputs

    def _without_pixels(self, read: DaliInput, stream: torch.cuda.Stream | None) -> HostBatch:
        if stream is not None:
            size = self._image_size
            # Memory of the stream that will write it: what an earlier batch did with it there is
            # done before, and what it did on the stream that trains is waited for by the allocator
            # (`record_stream`). Memory of this thread's own stream could still be read.
            with torch.cuda.stream(stream):
                image = torch.empty((self._batch_size, 3, size, size), device=self._device)
        else:
            image = torch.from_numpy(self._images.take())
        replaced_B = read.taken_B != read.request.index_B
        return HostBatch(image, read.taken_B, replaced_B, read.unreadable)


def _copy(images: Any, out_B3HW: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
    """Copy DALI's output, and wait for that: the memory is DALI's again afterwards."""
    from nvidia.dali.plugin.pytorch import feed_ndarray

    feed_ndarray(images.as_tensor(), out_B3HW, cuda_stream=stream)
    if stream is not None:
        stream.synchronize()
