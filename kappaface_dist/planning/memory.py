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
from torch._subclasses.fake_tensor import FakeTensorMode

from kappaface_dist.config.keys import Config
from kappaface_dist.head import PartialFC
from kappaface_dist.head.sampling import sample_rows, sample_size
from kappaface_dist.head.softmax.settings import default_chunk_bytes, fitting_rows
from kappaface_dist.planning.made_up_job import made_up_head
from kappaface_dist.planning.memory_meter import MemoryMeter, num_bytes
from kappaface_dist.planning.pretend_gpu import DEVICE, pretend_gpu
from kappaface_dist.training.build import DTYPES, new_network, new_optimizer

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
    return backbone_items(config, size.num_ranks) | head_items(config, size, device_type)


def backbone_items(config: Config, num_ranks: int) -> dict[str, int]:
    """Parameters and running statistics, gradients, optimizer, images, activations, workspaces."""
    with FakeTensorMode():
        network = new_network(config)
        state = num_bytes([*network.parameters(), *network.buffers()])
        trained = [p for p in network.parameters() if p.requires_grad]
        section = config.optimizer
        # apex's holds the same, and need not be here.
        optimizer = new_optimizer(config, network, implementation="torch")
        side = config.data.image_size
        image_B3HW = torch.empty(config.data.batch_size, 3, side, side)
        activations, workspace = _forward_backward(config, network, image_B3HW)
        gradients = num_bytes(p.grad for p in trained if p.grad is not None)
        if num_ranks == 1:
            workspace = max(workspace - gradients, 0)
        else:
            # DDP holds the gradients' memory from the start, but fills it with the last
            # micro-batch only: those before it have gradients of their own.
            before_last = workspace if section.accumulate > 1 else 0
            _, workspace = _forward_backward(config, network, image_B3HW)
            if config.backbone.gradient_dtype == "bf16":
                workspace += gradients // 2  # on their way until the optimizer's step
            workspace = max(workspace, before_last)
        optimizer.step()
        with MemoryMeter() as meter:
            torch.nn.utils.clip_grad_norm_(trained, section.clip_norm or float("inf"))
            optimizer.step()
        moments = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
        images = num_bytes([image_B3HW]) * section.accumulate
        return {
            "backbone_parameters": state,
            "backbone_gradients": gradients,
            "backbone_optimizer": num_bytes(moments),
            "images": images,
            "activations": activations,
            "backward_workspace": workspace,
            "optimizer_workspace": meter.peak_bytes,
        }


def _forward_backward(
    config: Config, network: torch.nn.Module, image_B3HW: torch.Tensor
) -> tuple[int, int]:
    """(bytes held between forward and backward pass, most bytes beyond them in the backward)."""
    with MemoryMeter() as meter:
        with torch.autocast("cpu", DTYPES[config.precision], enabled=config.precision != "fp32"):
            embedding_BD = network(image_B3HW)
        activations = meter.live_bytes
        meter.reset_peak()
        embedding_BD.backward(torch.ones_like(embedding_BD))
        return activations, meter.peak_bytes - activations


def head_items(config: Config, size: JobSize, device_type: str) -> dict[str, int]:
    """State of this rank's classes by kind, and the buffers of a step."""
    rows = size.classes_per_rank
    per_class = bytes_per_class(config, size.num_ranks)
    items = {name: int(slope * rows) for name, slope in per_class.items()}
    num_images = micro_batch_images(config, size)
    used = sample_size(rows, config.head.sample_rate, step_images(config, size))
    items["logit_cache"] = cache_bytes(config, num_images, used, device_type)
    items["held_embeddings"] = held_bytes(config, size)
    items["head_buffers"] = buffer_bytes(config, used, size, device_type)
    if used < rows:
        # Drawing takes vectors of K numbers for a short while, beside the gathered embeddings.
        drawing = int(sampling_bytes_per_class(config.head.sample_rate) * rows)
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
    few, more = (
        head_state_bytes(made_up_head(config, count * num_ranks, CPU)) for count in (64, 192)
    )
    return {name: (more[name] - few[name]) / 128 for name in few}


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
    if made_up_head(config, size.num_ranks, CPU).class_margins.statistics is None:
        return 0
    passes = 1 if config.optimizer.cache_embeddings else config.optimizer.accumulate
    # Embedding and cosine in fp32, row, two flags' bytes.
    per_image = 4 * config.backbone.embedding_size + 4 + 8 + 2
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
    kept = config.head.logit_cache_bytes / (2 * num_images * rows * passes) if rows else 0.0
    logits = 2 * (num_images // factor) * (few if kept >= 1 else chunk) * passes
    cache = logits if kept > 0 else 0
    small = dataclasses.replace(
        config,
        backbone=dataclasses.replace(config.backbone, embedding_size=embedding_size // factor),
        head=dataclasses.replace(config.head, sample_rate=rate, logit_cache_bytes=cache),
    )
    head = made_up_head(small, shard * size.num_ranks, device)
    head.take_chunks_of(chunk)
    shape = num_images // size.num_ranks // factor, embedding_size // factor
    label_B = torch.arange(shape[0], device=device) % head.num_classes
    embeddings = [torch.randn(shape, device=device).requires_grad_() for _ in range(passes)]
    with MemoryMeter(device.type) as meter:
        if passes > 1:
            head.announce(label_B.repeat(passes))
        for embedding_BD in embeddings:
            head(embedding_BD, label_B).backward()
        kept_bytes = head.held_cache_bytes() + num_bytes(head.class_margins.held_tensors())
        head.step(0.1)
    return meter.peak_bytes - kept_bytes
