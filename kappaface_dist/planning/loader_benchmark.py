"""The loader beside DALI's own record reader and a plain torch DataLoader.

Shapes: B images on this rank, H W image size.
"""

import argparse
import io
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.sources.catalog import Catalog, open_catalog

WARM_UP_BATCHES = 6


DATALOADER_WORKERS = 2


READS = 100_000


def ours(args: argparse.Namespace, catalog: Catalog) -> Iterator[int]:
    """Our loader."""
    loader = build_loader(
        catalog,
        loader=args.loader,
        batch_size=args.batch_size,
        image_size=args.image_size,
        augment=args.augment,
        num_threads=args.threads,
        device=torch.device(args.device),
        dali_decodes=args.dali_decodes or None,
    )
    try:
        for batch in loader.batches(0, sys.maxsize // args.batch_size):
            yield len(batch.image_B3HW)
    finally:
        loader.close()


def dali_reader(args: argparse.Namespace, catalog: Catalog) -> Iterator[int]:
    """DALI's readers.mxnet and decoder, with as many threads as ours."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import feed_ndarray

    on_gpu = args.device == "cuda"

    @pipeline_def(
        batch_size=args.batch_size, num_threads=args.threads, device_id=0 if on_gpu else None
    )
    def graph() -> Any:
        jpeg, label = fn.readers.mxnet(
            path=[args.data],
            index_path=[str(Path(args.data).with_suffix(".idx"))],
            random_shuffle=True,
        )
        image = fn.decoders.image(jpeg, device="mixed" if on_gpu else "cpu")
        image = fn.crop_mirror_normalize(
            image,
            crop=[args.image_size, args.image_size],
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[127.5] * 3,
            std=[127.5] * 3,
            mirror=fn.random.coin_flip(),
        )
        return image, label

    pipeline = graph()
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    while True:
        images, _ = pipeline.run()
        out_B3HW = torch.empty(shape, device=args.device)
        stream = torch.cuda.current_stream() if on_gpu else None
        feed_ndarray(images.as_tensor(), out_B3HW, cuda_stream=stream)
        yield args.batch_size


class PillowDataset(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """What a first version of a trainer does."""

    def __init__(self, catalog: Catalog, image_size: int):
        self._catalog = catalog
        self._size = (image_size, image_size)

    def __len__(self) -> int:
        return self._catalog.num_images

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.open(io.BytesIO(self._catalog.read(index))).convert("RGB")
        if image.size != self._size:
            image = image.resize(self._size, Image.Resampling.BILINEAR)
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image_3HW = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        return image_3HW.sub_(127.5).div_(127.5), int(self._catalog.label_I[index])


def torch_dataloader(args: argparse.Namespace, catalog: Catalog) -> Iterator[int]:
    """torch's DataLoader with Pillow and two worker processes."""
    loader = torch.utils.data.DataLoader(
        PillowDataset(catalog, args.image_size),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=DATALOADER_WORKERS,
        multiprocessing_context="fork",
        pin_memory=args.device == "cuda",
        persistent_workers=True,
    )
    while True:
        for image_B3HW, _ in loader:
            image_B3HW.to(args.device, non_blocking=True)
            yield args.batch_size


CONTESTANTS: dict[str, Callable[[argparse.Namespace, Catalog], Iterator[int]]] = {
    "ours": ours,
    "dali_reader": dali_reader,
    "torch_dataloader": torch_dataloader,
}


def take_turn(name: str, args: argparse.Namespace, results: Any) -> None:
    """Time one contestant; called in a process of its own."""
    try:
        catalog = open_catalog(args.data)
        started = time.perf_counter()
        batches = CONTESTANTS[name](args, catalog)
        next(batches)
        first_batch = time.perf_counter() - started
        for _ in range(WARM_UP_BATCHES):
            next(batches)
        synchronise(args.device)
        num_images, started, used = 0, time.perf_counter(), cpu_seconds()
        while time.perf_counter() - started < args.seconds:
            num_images += next(batches)
        synchronise(args.device)
        seconds, used = time.perf_counter() - started, cpu_seconds() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        results.put(
            {
                "images_per_second": num_images / seconds,
                "images_per_second_per_core": num_images / seconds / args.cores,
                # Hardly moved by what else the machine does.
                "images_per_cpu_second": num_images / used,
                "first_batch_seconds": first_batch,
                # Of the main process; kilobytes on Linux.
                "peak_megabytes": peak / 1024,
            }
        )
    except Exception as error:  # noqa: BLE001 - DALI's reader fails on many a record: that is said
        results.put({"error": " ".join(str(error).split())[:300] or repr(error)})
    # Their threads and workers must not outlive the turn, however they were left.
    results.close()
    results.join_thread()
    os._exit(0)


def cpu_seconds() -> float:
    """Processor time of this process and of its workers, so far."""
    times = os.times()
    total = times.user + times.system
    for worker in multiprocessing.active_children():
        # Fields 14 and 15 of proc(5), in ticks; the name in field 2 may hold spaces.
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_reader(catalog: Catalog) -> float:
    """Records per second of our reader alone, at random, on one core, once they are in memory."""
    indices = np.random.default_rng(0).integers(0, catalog.num_images, READS).tolist()
    for index in indices:
        catalog.read(index)
    started = time.perf_counter()
    for index in indices:
        catalog.read(index)
    return READS / (time.perf_counter() - started)


def median(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each number over the turns; the error, where one failed."""
    for turn in turns:
        if "error" in turn:
            return turn
    return {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
