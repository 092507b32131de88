"""Batches for training, ready on the device.

Shapes: B images on this rank, H W the image size.
"""

import logging
import weakref
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import torch

from kappaface_dist.config.checks import check_choice
from kappaface_dist.data.loading.advice import Reading, advice
from kappaface_dist.data.loading.augment import Changes, draw_changes
from kappaface_dist.data.loading.cpu import CpuDecoder, HostBatch, Request
from kappaface_dist.data.loading.dali import DaliDecoder, dali_is_installed
from kappaface_dist.data.loading.labels import Labels
from kappaface_dist.data.loading.sampler import Shuffle
from kappaface_dist.data.loading.stored_rows import StoredRows
from kappaface_dist.data.normalisation import normalise
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.parallel.cores import threads_per_rank

logger = logging.getLogger(__name__)

BATCHES_AHEAD = 3


class Batch(NamedTuple):
    """What one step trains on."""

    image_B3HW: torch.Tensor  # float32 in [-1, 1]
    label_B: torch.Tensor  # int64; [B, L] where each image counts in L classes
    # int64: the epoch to which each image belongs; -1 where it stands in for an unreadable one, and
    # is thus seen a second time
    epoch_B: torch.Tensor | None = None
    slot_B: torch.Tensor | None = None  # int32: each label's number in its class, if asked for
    stored_BT: torch.Tensor | None = None  # float16: a teacher's embeddings, if they are kept


class Loader:
    """This rank's part of the image stream, decoded in the background.

    Attributes:
        num_read: images delivered to this rank.
        num_corrupt: how many of them were unreadable and replaced by the next readable image.
        corrupt: the unreadable images met so far, each once: (where it lies, why).
    """

    def __init__(
        self,
        catalog: Catalog,
        decoder: CpuDecoder | DaliDecoder,
        *,
        batch_size: int,
        augment: str,
        shuffle: Shuffle,
        device: torch.device,
        reading: Reading,
        labels: Labels,
        rows: StoredRows | None = None,
    ):
        self.num_read = self.num_corrupt = 0
        self.corrupt: list[tuple[str, str]] = []
        self._catalog, self._decoder, self._reading = catalog, decoder, reading
        self._shuffle, self._labels, self._rows = shuffle, labels, rows
        self._batch_size, self._augment, self._device = batch_size, augment, device
        self._reported: set[int] = set()
        # Weak: a caller who drops the iterator ends it, and its threads with it.
        self._running: weakref.ref[Generator[Batch, None, None]] | None = None
        self._num_asked, self._advised = 0, False

    def batches(self, position: int, num_steps: int) -> Iterator[Batch]:
        """The batches of num_steps steps, the first of which begins at position of the stream.

        Ends the iterator of an earlier call.

        Raises:
            ValueError: a thousand images in a row are unreadable.
        """
        self.close()
        running = self._run(position, num_steps)
        self._running = weakref.ref(running)
        return running

    def close(self) -> None:
        """End the threads of the running iterator."""
        running = self._running() if self._running else None
        if running is not None:
            running.close()

    def advise(self, waited: float) -> str | None:
        """What to change, if training waited for data for this share of the time.

        Said once: not after the first stretch, which has the start in it, but after another.
        """
        self._num_asked += 1
        if self._advised or self._num_asked == 1:
            return None
        text = advice(waited, self._reading)
        self._advised = text is not None
        return text

    def _run(self, position: int, num_steps: int) -> Generator[Batch, None, None]:
        decoded = self._decoder.batches(self._requests(position, num_steps), BATCHES_AHEAD)
        try:
            for number, host in enumerate(decoded):
                self._count(host)
                image = host.image.to(self._device, non_blocking=True)
                image_B3HW = normalise(image) if image.dtype == torch.uint8 else image
                position_B = self._positions(position, number)
                epoch_B = position_B // self._shuffle.num_images
                label, slot = self._labels.of(host.taken_B, epoch_B)
                epoch_B[host.replaced_B] = -1
                more = [slot]
                if self._rows is not None:
                    more.append(self._rows.of(host.taken_B, self._changes(position_B).flip_B))
                yield Batch(
                    image_B3HW,
                    self._to_device(label),
                    self._to_device(epoch_B),
                    *(None if found is None else self._to_device(found) for found in more),
                )
        finally:
            decoded.close()

    def _to_device(self, numbers: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(numbers)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()  # a copy of ordinary memory is waited for
        return tensor.to(self._device, non_blocking=True)

    def _requests(self, position: int, num_steps: int) -> Iterator[Request]:
        for number in range(num_steps):
            position_B = self._positions(position, number)
            index_B = self._shuffle.indices(int(position_B[0]), self._batch_size)
            yield Request(index_B, self._changes(position_B))

    def _positions(self, position: int, number: int) -> np.ndarray:
        """Of this rank's batch of a step in the stream, the first step beginning at position."""
        start = position + self._batch_size * (number * parallel.world_size() + parallel.rank())
        return np.arange(start, start + self._batch_size)

    def _changes(self, position_B: np.ndarray) -> Changes:
        return draw_changes(self._augment, self._shuffle.seed, position_B)

    def _count(self, host: HostBatch) -> None:
        self.num_read += len(host.taken_B)
        self.num_corrupt += int(host.replaced_B.sum())
        for index, reason in host.unreadable.items():
            if index not in self._reported:
                self._reported.add(index)
                self.corrupt.append((self._catalog.where(index), reason))
                logger.warning("left out: %s: %s", *self.corrupt[-1])


def build_loader(
    catalog: Catalog,
    *,
    loader: str = "auto",
    batch_size: int,
    image_size: int = 112,
    augment: str = "flip",
    num_threads: int = 0,
    block_shuffle: int = 0,
    seed: int = 0,
    device: torch.device,
    dali_decodes: bool | None = None,
    with_slots: bool = False,
    labels: str = "first",
    rows: StoredRows | None = None,
) -> Loader:
    """Make the loader of this rank.

    Args:
        catalog: the dataset.
        loader: "dali" (on the GPU, or on the CPU if that is the device), "cpu", or "auto": DALI
            where there is a GPU and DALI, otherwise the CPU loader, the faster one there.
        batch_size: images per rank and step.
        image_size: height and width that the network sees, in pixels.
        augment: name of a preset in augment.py.
        num_threads: decoder threads; 0 for this rank's share of the machine's cores.
        block_shuffle: images per block that stay together on disk; 0 for a full shuffle.
        seed: of the order and of the random changes.
        device: where the batches go.
        dali_decodes: whether DALI decodes the JPEGs or the threads that feed it; None: it does on
            the GPU. (On the CPU it would cost more: DALI's decoder needs a check before it.)
        with_slots: batches say which of its class's images each is: four bytes per image.
        labels: which of an image's labels: its "first", one by "draw", or all, for their "mean".
        rows: embeddings that batches have with their images.

    Raises:
        ValueError: there is no such loader or preset.
        RuntimeError: DALI is asked for and not installed.
    """
    check_choice("data.loader", loader)
    check_choice("data.augment", augment)
    num_threads = num_threads or threads_per_rank()
    if loader == "auto":
        loader = "dali" if device.type == "cuda" and dali_is_installed() else "cpu"
    decoder: CpuDecoder | DaliDecoder
    if loader == "dali":
        decoder = DaliDecoder(
            catalog,
            batch_size=batch_size,
            image_size=image_size,
            augment=augment,
            num_threads=num_threads,
            device=device,
            dali_decodes=device.type == "cuda" if dali_decodes is None else dali_decodes,
        )
    else:
        decoder = CpuDecoder(
            catalog,
            batch_size=batch_size,
            image_size=image_size,
            num_threads=num_threads,
            for_gpu=device.type == "cuda",
        )
    return Loader(
        catalog,
        decoder,
        batch_size=batch_size,
        augment=augment,
        shuffle=Shuffle(catalog.num_images, seed, block_shuffle),
        device=device,
        reading=Reading(
            loader=loader,
            on_gpu=device.type == "cuda",
            has_dali=dali_is_installed(),
            num_threads=num_threads,
            num_cores=threads_per_rank(),
            augment=augment,
            block_shuffle=block_shuffle,
        ),
        labels=Labels(catalog, labels, seed, with_slots=with_slots),
        rows=rows,
    )
