"""Bytes that a step of the heads takes for a while: logits that are kept, buffers, samples.

Counted on heads of a few chunks, of fake tensors where they are a GPU's, otherwise smaller in
images, embedding size and chunk by the same factor s, with which all of them shrink as s². Call
these functions inside `pretend_group.pretend_ranks`.
Shapes: G images of a micro-batch on all ranks, D embedding size, K classes of this shard, S rows of
those in use.
"""

import dataclasses

import torch

from kappaface_dist.config.datasets import datasets, weights
from kappaface_dist.config.keys import Config
from kappaface_dist.head import Heads, PartialFC
from kappaface_dist.head.sampling import sample_rows, sample_size
from kappaface_dist.head.softmax.settings import default_chunk_bytes, fitting_rows, whole_classes
from kappaface_dist.planning.job_size import JobSize, jobs_of
from kappaface_dist.planning.made_up_job import made_up_head
from kappaface_dist.planning.memory_meter import MemoryMeter, num_bytes
from kappaface_dist.planning.pretend_gpu import DEVICE, pretend_gpu

# Of the smaller head; below that, vectors of G numbers would count for too much.
SMALLEST_EMBEDDING = 128
CPU = torch.device("cpu")


def micro_batch_images(config: Config, size: JobSize) -> int:
    """G: images that the head sees at a time."""
    cached = config.optimizer.cache_embeddings
    return config.data.batch_size * size.num_ranks * (config.optimizer.accumulate if cached else 1)


def step_images(config: Config, size: JobSize) -> int:
    """Images of a step on all ranks, whose classes all belong to its sample."""
    return config.data.batch_size * size.num_ranks * config.optimizer.accumulate


def used_rows(config: Config, size: JobSize) -> int:
    """S of one head."""
    rate = config.head.largest_sample_rate
    classes = sample_size(size.classes_per_rank, rate, step_images(config, size))
    return classes * config.head.sub_centres


def buffers_and_samples(config: Config, size: JobSize, device_type: str) -> int:
    """Of all heads, the numbers of the rows that are in use among them."""
    drawn, most = 0, 0
    for own, own_size in jobs_of(config, size):
        rows, used = own_size.classes_per_rank, used_rows(own, own_size)
        if used < rows * own.head.sub_centres:
            # Drawing takes vectors of K numbers for a short while, beside the gathered embeddings.
            drawing = int(sampling_bytes_per_class(own.head.largest_sample_rate) * rows)
            drawing += 8 * micro_batch_images(config, size) * config.backbone.embedding_size
            most = max(most, drawn + drawing)
            drawn += 8 * used
    return max(buffer_bytes(config, size, device_type) + drawn, most)


def sampling_bytes_per_class(sample_rate: float) -> float:
    """Peak bytes for each class of the shard while a sample is drawn."""
    owned_G = torch.ones(8, dtype=torch.bool)
    peaks = []
    for rows in (4096, 8192):
        with MemoryMeter() as meter:
            sample_rows(torch.arange(8), owned_G, rows, sample_rate, seed=0)
        peaks.append(meter.peak_bytes)
    return (peaks[1] - peaks[0]) / 4096


def cache_bytes(config: Config, num_images: int, rows: int, device_type: str) -> int:
    """What the logit caches of a step's micro-batches hold: whole ones, and whole chunks of one."""
    section = config.optimizer
    passes = 1 if section.cache_embeddings else section.accumulate
    whole = 2 * num_images * rows
    size = config.backbone.embedding_size
    chunk_rows = fitting_rows(default_chunk_bytes(device_type), num_images, size)
    chunk_rows = whole_classes(chunk_rows, config.head.sub_centres)
    kept, rest = divmod(min(config.head.logit_cache_bytes, passes * whole), max(whole, 1))
    chunk = 2 * num_images * chunk_rows
    return kept * whole + rest // chunk * chunk


def buffer_bytes(config: Config, size: JobSize, device_type: str) -> int:
    """Most bytes that a step of the heads takes beyond their state and the logits that they keep.

    For a GPU from the code that one runs, where this torch is built for CUDA; otherwise from the
    CPU's, which takes some more.
    """
    if device_type == "cuda" and torch.backends.cuda.is_built():
        with pretend_gpu():
            return _heads_peak(config, size, DEVICE, 1)
    embedding_size, factor = config.backbone.embedding_size, 1
    fewest = min(own.data.batch_size for own in datasets(config).values())
    while embedding_size // (2 * factor) >= SMALLEST_EMBEDDING and 2 * factor <= fewest:
        factor *= 2
    return _heads_peak(config, size, CPU, factor, device_type) * factor**2


def _heads_peak(
    config: Config,
    size: JobSize,
    device: torch.device,
    factor: int,
    device_type: str | None = None,
) -> int:
    """The same of heads of three chunks (those of device_type), smaller by factor otherwise."""
    jobs = zip(datasets(config), jobs_of(config, size), strict=True)
    by_name = {
        name: _small_head(*job, device, factor, device_type or device.type) for name, job in jobs
    }
    each, passes, together = list(by_name.values()), config.optimizer.accumulate, 1
    if config.optimizer.cache_embeddings:
        passes, together = 1, passes
    counts = [own.data.batch_size // factor for own in datasets(config).values()]
    head: PartialFC | Heads = each[0]
    if len(each) > 1:
        head = Heads(by_name, counts, weights(config))
    num_images, num_classes = sum(counts) * together, min(one.num_classes for one in each)
    label_B = torch.arange(num_images, device=device) % num_classes
    slot_B = torch.zeros_like(label_B)
    shape = len(label_B), config.backbone.embedding_size // factor
    embeddings = [torch.randn(shape, device=device).requires_grad_() for _ in range(passes)]
    with MemoryMeter(device.type) as meter:
        if passes > 1:
            head.announce(label_B.repeat(passes))
        for embedding_BD in embeddings:
            head(embedding_BD, label_B, slot_B=slot_B).backward()
        seen = [tensor for one in each for tensor in one.class_margins.held_tensors()]
        kept_bytes = head.held_cache_bytes() + num_bytes(seen)
        head.step(0.1)
    return meter.peak_bytes - kept_bytes


def _small_head(
    config: Config, size: JobSize, device: torch.device, factor: int, device_type: str
) -> PartialFC:
    rows, each = used_rows(config, size), config.head.sub_centres
    num_images, embedding_size = micro_batch_images(config, size), config.backbone.embedding_size
    chunk = min(fitting_rows(default_chunk_bytes(device_type), num_images, embedding_size), rows)
    chunk = whole_classes(max(chunk // factor, 1), each)
    few = min(3 * chunk, whole_classes(max(rows // factor, 1), each))
    sampled = rows < size.classes_per_rank * each
    # Where the job samples, so does this head: gathered rows are copies.
    shard = 4 * few if sampled else few
    rate = max(few - each * (step_images(config, size) // factor), each) / shard if sampled else 1.0
    passes = 1 if config.optimizer.cache_embeddings else config.optimizer.accumulate
    # Of three chunks as many are kept as of all, or one where it is some.
    kept = cache_bytes(config, num_images, rows, device_type)
    chunks = few if kept >= 2 * num_images * rows * passes else chunk
    cache = 2 * (num_images // factor) * chunks * passes if kept else 0
    small = dataclasses.replace(
        config,
        backbone=dataclasses.replace(config.backbone, embedding_size=embedding_size // factor),
        head=dataclasses.replace(config.head, sample_rate=rate, logit_cache_bytes=cache),
    )
    small = without_kernels(small) if device == CPU else small
    head = made_up_head(small, shard // each * size.num_ranks, device)
    head.take_chunks_of(chunk)
    return head


def without_kernels(config: Config) -> Config:
    """The same for a CPU, where no kernel runs, and one that is asked for is refused."""
    return dataclasses.replace(config, head=dataclasses.replace(config.head, fused="off"))
