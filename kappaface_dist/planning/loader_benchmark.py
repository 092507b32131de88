"""The loader beside DALI's own record reader and a plain torch DataLoader.

Each contestant takes its turns in fresh processes, which import it from here. All deliver the
same: shuffled, mirrored at random, normalised float32 batches on the device.
Shapes: B images of a batch, H W image size.
"""

import io
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kappaface_dist.commands import end_with_parent
from kappaface_dist.data.images import FORMATS
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.sources.catalog import Catalog, open_catalog

WARM_UP_BATCHES = 6
DATALOADER_WORKERS = 2
READS = 100_000


@dataclass(frozen=True)
class Task:
    """What every contestant delivers.

    Attributes:
        data: a .rec file; DALI's reader wants its .idx beside it.
        loader: of ours, as data.loader of a configuration.
        dali_decodes: on the CPU, too: what the GPU does, done there.
        augment: a preset of ours; the others only mirror.
    """

    data: str
    loader: str
    device: str
    dali_decodes: bool
    batch_size: int
    image_size: int
    augment: str
    threads: int


def ours(task: Task, catalog: Catalog) -> Iterator[int]:
    """Our loader."""
    loader = build_loader(
        catalog,
        loader=task.loader,
        batch_size=task.batch_size,
        image_size=task.image_size,
        augment=task.augment,
        num_threads=task.threads,
        device=torch.device(task.device),
        dali_decodes=task.dali_decodes or None,
    )
    try:
        for batch in loader.batches(0, sys.maxsize // task.batch_size):
            yield len(batch.image_B3HW)
    finally:
        loader.close()


def dali_reader(task: Task, catalog: Catalog) -> Iterator[int]:
    """DALI's readers.mxnet and decoder, with as many threads as ours."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import feed_ndarray

    on_gpu = task.device == "cuda"

    @pipeline_def(
        batch_size=task.batch_size, num_threads=task.threads, device_id=0 if on_gpu else None
    )
    def graph() -> Any:
        jpeg, label = fn.readers.mxnet(
            path=[task.data],
            index_path=[str(Path(task.data).with_suffix(".idx"))],
            random_shuffle=True,
        )
        image = fn.decoders.image(jpeg, device="mixed" if on_gpu else "cpu")
        image = fn.crop_mirror_normalize(
            image,
            crop=[task.image_size, task.image_size],
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[127.5] * 3,
            std=[127.5] * 3,
            mirror=fn.random.coin_flip(),
        )
        return image, label

    pipeline = graph()
    shape = (task.batch_size, 3, task.image_size, task.image_size)
    while True:
        images, _ = pipeline.run()
        out_B3HW = torch.empty(shape, device=task.device)
        stream = torch.cuda.current_stream() if on_gpu else None
        feed_ndarray(images.as_tensor(), out_B3HW, cuda_stream=stream)
        yield task.batch_size


class PillowDataset(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """What a first version of a trainer does."""

    def __init__(self, catalog: Catalog, image_size: int):
        self._catalog = catalog
        self._size = (image_size, image_size)

    def __len__(self) -> int:
        return self._catalog.num_images

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.open(io.BytesIO(self._catalog.read(index)), formats=FORMATS).convert("RGB")
        if image.size != self._size:
            image = image.resize(self._size, Image.Resampling.BILINEAR)
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image_3HW = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        return image_3HW.sub_(127.5).div_(127.5), int(self._catalog.label_I[index])


def torch_dataloader(task: Task, catalog: Catalog) -> Iterator[int]:
    """torch's DataLoader with Pillow and two worker processes."""
    loader = torch.utils.data.DataLoader(
        PillowDataset(catalog, task.image_size),
        batch_size=task.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=DATALOADER_WORKERS,
        multiprocessing_context="fork",
        pin_memory=task.device == "cuda",
        persistent_workers=True,
    )
    while True:
        for image_B3HW, _ in loader:
            image_B3HW.to(task.device, non_blocking=True)
            yield task.batch_size


CONTESTANTS: dict[str, Callable[[Task, Catalog], Iterator[int]]] = {
    "ours": ours,
    "dali_reader": dali_reader,
    "torch_dataloader": torch_dataloader,
}


def take_turns(
    task: Task, *, num_rounds: int, seconds: float, cores: int
) -> dict[str, dict[str, Any]]:
    """The contestants by name, in turns: the median of each number, or the `error` of one turn.

    Args:
        seconds: of each turn.
        cores: that the images per second and core are of.
    """
    context = multiprocessing.get_context("spawn")
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for _ in range(num_rounds):
        for name in CONTESTANTS:
            results = context.Queue()
            process = context.Process(target=_turn, args=(name, task, seconds, cores, results))
            process.start()
            turns[name].append(results.get())
            process.join()
    return {name: median(found) for name, found in turns.items()}


def _turn(name: str, task: Task, seconds: float, cores: int, results: Any) -> None:
    """Time one contestant, in a process of its own, and end it."""
    end_with_parent()
    try:
        results.put(time_contestant(name, task, seconds, cores))
    except Exception as error:  # noqa: BLE001 - DALI's reader fails on many a record: that is said
        results.put({"error": " ".join(str(error).split())[:300] or repr(error)})
    # Their threads and workers must not outlive the turn, however they were left.
    results.close()
    results.join_thread()
    os._exit(0)


def time_contestant(name: str, task: Task, at_least: float, cores: int) -> dict[str, float]:
    """Images per second, and what they cost, over so many seconds after the first batches."""
    catalog = open_catalog(task.data)
    started = time.perf_counter()
    batches = CONTESTANTS[name](task, catalog)
    next(batches)
    first_batch = time.perf_counter() - started
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    synchronise(task.device)
    num_images, started, used = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - started < at_least:
        num_images += next(batches)
    synchronise(task.device)
    seconds, used = time.perf_counter() - started, cpu_seconds() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "images_per_second": num_images / seconds,
        "images_per_second_per_core": num_images / seconds / cores,
        # Hardly moved by what else the machine does.
        "images_per_cpu_second": num_images / used,
        "first_batch_seconds": first_batch,
        # Of the main process; kilobytes on Linux.
        "peak_megabytes": peak / 1024,
    }


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
