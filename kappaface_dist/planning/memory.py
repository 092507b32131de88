"""Bytes that one rank of a job will hold, by item.

The backbone's are counted in one step on fake tensors. The head's rows are counted on a head of a
few classes; its buffers on one of a few chunks, of fake tensors where it is a GPU's, otherwise
smaller in images, embedding size and chunk by the same factor s, with which all of them shrink as
s². Call these functions inside `pretend_group.pretend_ranks`.
Shapes: G images of a micro-batch on all ranks, D embedding size, K classes of this shard.
"""

import dataclasses
from dataclasses import dataclass

import torch

from kappaface_dist.config.keys import Config
from kappaface_dist.head import KappaFace, PartialFC, build_margin
from kappaface_dist.head.sampling import sample_rows, sample_size
from kappaface_dist.head.softmax.settings import default_chunk_bytes, fitting_rows
from kappaface_dist.planning.backbone_memory import backbone_items
from kappaface_dist.planning.collectives import bytes_of_marks
from kappaface_dist.planning.made_up_job import made_up_head
from kappaface_dist.planning.memory_meter import MemoryMeter, num_bytes
from kappaface_dist.planning.pretend_gpu import DEVICE, pretend_gpu
from kappaface_dist.planning.teacher import teacher_items

# Of the smaller head; below that, vectors of G numbers would count for too much.
SMALLEST_EMBEDDING = 128
CPU = torch.device("cpu")


@dataclass(frozen=True)
class JobSize:
    """Attributes:
    num_classes: C, of all ranks.
    num_images: of the dataset.
    num_ranks: N.
    """

    num_classes: int
    num_images: int
    num_ranks: int

    @property
    def classes_per_rank(self) -> int:
        """K of the largest shard."""
        return -(-self.num_classes // self.num_ranks)


def micro_batch_images(config: Config, size: JobSize) -> int:
    """G: images that the head sees at a time."""
    cached = config.optimizer.cache_embeddings
    return config.data.batch_size * size.num_ranks * (config.optimizer.accumulate if cached else 1)


def step_images(config: Config, size: JobSize) -> int:
    """Images of a step on all ranks, whose classes all belong to its sample."""
    return config.data.batch_size * size.num_ranks * config.optimizer.accumulate


def memory_items(config: Config, size: JobSize, device_type: str = "cpu") -> dict[str, int]:
    """Every item in bytes; they are added up as if all were there at once."""
    items = backbone_items(config, size.num_ranks) | head_items(config, size, device_type)
    if config.margin.get("source") == "encoder":
        items["momentum_encoder"] = items["backbone_parameters"]
    return items | teacher_items(config)


def head_items(config: Config, size: JobSize, device_type: str) -> dict[str, int]:
    """State of this rank's classes by kind, and the buffers of a step."""
    rows = size.classes_per_rank
    per_class = bytes_per_class(config, size.num_ranks)
    items = {name: int(slope * rows) for name, slope in per_class.items()}
    num_images = micro_batch_images(config, size)
    used = sample_size(rows, config.head.largest_sample_rate, step_images(config, size))
    items["logit_cache"] = cache_bytes(config, num_images, used, device_type)
    items["held_embeddings"] = held_bytes(config, size)
    if config.margin.get("source") == "memory":
        # Of the classes of a rank; where these differ in size, so do the ranks.
        images = -(-size.num_images // size.num_ranks)
        items["image_memory"] = 2 * config.backbone.embedding_size * images
    items["head_buffers"] = buffer_bytes(config, used, size, device_type)
    if used < rows:
        # Drawing takes vectors of K numbers for a short while, beside the gathered embeddings.
        drawing = int(sampling_bytes_per_class(config.head.largest_sample_rate) * rows)
        drawing += 8 * num_images * config.backbone.embedding_size
        items["head_buffers"] = max(items["head_buffers"] + 8 * used, drawing)
    return items


def cache_bytes(config: Config, num_images: int, rows: int, device_type: str) -> int:
    """What the logit caches of a step's micro-batches hold: whole ones, and whole chunks of one."""
    section = config.optimizer
    passes = 1 if section.cache_embeddings else section.accumulate
    whole = 2 * num_images * rows
    size = config.backbone.embedding_size
    chunk_rows = fitting_rows(default_chunk_bytes(device_type), num_images, size)
    kept, rest = divmod(min(config.head.logit_cache_bytes, passes * whole), max(whole, 1))
    chunk = 2 * num_images * chunk_rows
    return kept * whole + rest // chunk * chunk


def bytes_per_class(config: Config, num_ranks: int) -> dict[str, float]:
    """Bytes of state for each class of a shard: centres, their optimizer, statistics."""
    plain = without_kernels(config)
    few, more = (
        head_state_bytes(made_up_head(plain, count * num_ranks, CPU)) for count in (64, 192)
    )
    return {name: (more[name] - few[name]) / 128 for name in few}


def without_kernels(config: Config) -> Config:
    """The same for a CPU, where no kernel runs, and one that is asked for is refused."""
    return dataclasses.replace(config, head=dataclasses.replace(config.head, fused="off"))


def head_state_bytes(head: PartialFC) -> dict[str, int]:
    """Bytes that a head holds between steps, by kind."""
    state = head.sharded_state()
    statistics = head.class_margins.statistics
    own = [] if statistics is None else [t for t in vars(statistics).values() if torch.is_tensor(t)]
    optimizer = [t for name, t in state.items() if name.startswith("optimizer.")]
    known = {id(t) for t in [state["weight"], *optimizer]}
    others = {id(t): t for t in [*state.values(), *own] if id(t) not in known}
    return {
        "centres": num_bytes([state["weight"]]),
        "centre_optimizer": num_bytes(optimizer),
        "class_statistics": num_bytes(others.values()),
    }


def held_bytes(config: Config, size: JobSize) -> int:
    """What the class statistics hold of a step until the next one, in case an epoch ends in it."""
    margin = build_margin(**config.margin)
    if not isinstance(margin, KappaFace):
        return 0
    passes = 1 if config.optimizer.cache_embeddings else config.optimizer.accumulate
    # Embedding and cosine in fp32, row, whether it is this rank's, marks.
    per_image = 4 * config.backbone.embedding_size + 4 + 8 + 1 + max(bytes_of_marks(margin), 1)
    return micro_batch_images(config, size) * passes * per_image


def sampling_bytes_per_class(sample_rate: float) -> float:
    """Peak bytes for each class of the shard while a sample is drawn."""
    owned_G = torch.ones(8, dtype=torch.bool)
    peaks = []
    for rows in (4096, 8192):
        with MemoryMeter() as meter:
            sample_rows(torch.arange(8), owned_G, rows, sample_rate, seed=0)
        peaks.append(meter.peak_bytes)
    return (peaks[1] - peaks[0]) / 4096


def buffer_bytes(config: Config, rows: int, size: JobSize, device_type: str) -> int:
    """Most bytes that a step of the head takes beyond its state and the logits that it keeps.

    For a GPU from the code that one runs, where this torch is built for CUDA; otherwise from the
    CPU's, which takes some more.
    """
    if device_type == "cuda" and torch.backends.cuda.is_built():
        with pretend_gpu():
            return _head_peak(config, rows, size, DEVICE, 1)
    embedding_size, factor = config.backbone.embedding_size, 1
    images = micro_batch_images(config, size) // size.num_ranks
    while embedding_size // (2 * factor) >= SMALLEST_EMBEDDING and images // (2 * factor) >= 1:
        factor *= 2
    return _head_peak(config, rows, size, CPU, factor, device_type) * factor**2


def _head_peak(
    config: Config,
    rows: int,
    size: JobSize,
    device: torch.device,
    factor: int,
    device_type: str | None = None,
) -> int:
    """The same of a head of three chunks (those of device_type), smaller by factor otherwise."""
    num_images, embedding_size = micro_batch_images(config, size), config.backbone.embedding_size
    chunk_bytes = default_chunk_bytes(device_type or device.type)
    chunk = min(fitting_rows(chunk_bytes, num_images, embedding_size), rows)
    chunk = max(chunk // factor, 1)
    few = min(3 * chunk, max(rows // factor, 1))
    sampled = rows < size.classes_per_rank
    # Where the job samples, so does this head: gathered rows are copies.
    shard = 4 * few if sampled else few
    rate = max(few - step_images(config, size) // factor, 1) / shard if sampled else 1.0
    passes = 1 if config.optimizer.cache_embeddings else config.optimizer.accumulate
    # Of three chunks as many are kept as of all, or one where it is some.
    kept = cache_bytes(config, num_images, rows, device_type or device.type)
    chunks = few if kept >= 2 * num_images * rows * passes else chunk
    cache = 2 * (num_images // factor) * chunks * passes if kept else 0
    small = dataclasses.replace(
        config,
        backbone=dataclasses.replace(config.backbone, embedding_size=embedding_size // factor),
        head=dataclasses.replace(config.head, sample_rate=rate, logit_cache_bytes=cache),
    )
    small = without_kernels(small) if device == CPU else small
    head = made_up_head(small, shard * size.num_ranks, device)
    head.take_chunks_of(chunk)
    shape = num_images // size.num_ranks // factor, embedding_size // factor
    label_B = torch.arange(shape[0], device=device) % head.num_classes
    slot_B = torch.zeros_like(label_B)
    embeddings = [torch.randn(shape, device=device).requires_grad_() for _ in range(passes)]
    with MemoryMeter(device.type) as meter:
        if passes > 1:
            head.announce(label_B.repeat(passes))
        for embedding_BD in embeddings:
            head(embedding_BD, label_B, slot_B=slot_B).backward()
        kept_bytes = head.held_cache_bytes() + num_bytes(head.class_margins.held_tensors())
        head.step(0.1)
    return meter.peak_bytes - kept_bytes
