"""Time the loader against DALI's own record reader and a plain torch DataLoader, in one run.

Each takes its turn in a fresh process, several times over; the medians are reported. All deliver
the same: shuffled, mirrored at random, normalised float32 batches on the device.
Example: python tools/benchmark_data.py data/faces/train.rec --loader cpu --device cpu --json -
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

from kappaface_dist import commands
from kappaface_dist.data.catalog import Catalog, open_catalog
from kappaface_dist.data.loader import build_loader

WARM_UP_BATCHES = 6
DATALOADER_WORKERS = 2
READS = 100_000


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a .rec file (DALI's reader wants its .idx beside it)")
    parser.add_argument("--loader", choices=("dali", "cpu"), default="cpu", help="ours")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dali-decodes", action="store_true", help="on the CPU, too: what the GPU does, done there"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--augment", default="flip", help="preset of ours (the others only flip)")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as cores")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--json", metavar="PATH", help="write a report as JSON, - for stdout")
    args = parser.parse_args()
    args.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    args.threads = args.threads or args.cores
    return args


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


def main() -> None:
    args = parse_args()
    catalog = open_catalog(args.data)
    context = multiprocessing.get_context("spawn")
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for _ in range(args.rounds):
        for name in CONTESTANTS:
            results = context.Queue()
            process = context.Process(target=take_turn, args=(name, args, results))
            process.start()
            turns[name].append(results.get())
            process.join()
    report: dict[str, Any] = {name: median(found) for name, found in turns.items()}
    speed = {name: numbers.get("images_per_second") for name, numbers in report.items()}
    for name in ("dali_reader", "torch_dataloader"):
        ratio = speed["ours"] / speed[name] if speed["ours"] and speed[name] else None
        report[f"ratio_to_{name}"] = ratio
        if ratio:
            of_cpu = "images_per_cpu_second"
            report[f"cpu_ratio_to_{name}"] = report["ours"][of_cpu] / report[name][of_cpu]
    report["reader_records_per_second"] = time_reader(catalog)
    report |= {name: value for name, value in vars(args).items() if name != "json"}
    out = sys.stderr if args.json == "-" else sys.stdout
    for name, numbers in speed.items():
        text = f"{numbers:.0f} images/s" if numbers else report[name]["error"]
        print(f"{name:<18}{text}", file=out)
    print(f"{'reader alone':<18}{report['reader_records_per_second']:.0f} records/s", file=out)
    commands.write_json(args.json, report)


def median(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each number over the turns; the error, where one failed."""
    for turn in turns:
        if "error" in turn:
            return turn
    return {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}


if __name__ == "__main__":
    commands.run(main)
