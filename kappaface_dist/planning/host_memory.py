"""Bytes that one rank of a job takes of its node's own memory, by item.

Beside them a process takes what Python, torch and CUDA do, a few GB. Call these functions inside
`pretend_group.pretend_ranks`.
Shapes: C all classes, K classes of this shard.
"""

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kappaface_dist.checkpoint.pieces import PIECE_BYTES, Room, row_ranges
from kappaface_dist.config.keys import Config
from kappaface_dist.planning.head_buffers import without_kernels
from kappaface_dist.planning.job_size import JobSize, jobs_of
from kappaface_dist.planning.made_up_job import made_up_head
from kappaface_dist.planning.step_time import RANKS_PER_NODE
from kappaface_dist.training.build import new_network

CPU = torch.device("cpu")
# Batches that are decoded ahead, and the one that is handed over.
BATCHES = 4
# Of each image: its label and its place in a record. The order of an epoch is not stored.
BYTES_PER_IMAGE = 4 + 8
# Moments that the backbone's optimizer keeps of each parameter.
MOMENTS = {"sgd": 1, "adamw": 2, "lamb": 2}

Shape = tuple[torch.Size, int]  # of a tensor, and bytes of an element


@dataclass(frozen=True)
class HostMemory:
    """Attributes:
    items: bytes by item.
    uncopied_bytes: of a save, those that find no room for a copy: the training waits until they are
        written.
    """

    items: dict[str, int]
    uncopied_bytes: int

    @property
    def total_bytes(self) -> int:
        return sum(self.items.values())


def host_memory(config: Config, size: JobSize, device_type: str) -> HostMemory:
    """Of the rank with most classes."""
    section = config.checkpoint
    replicated, sharded = _replicated(config), _sharded(config, size)
    room = Room(section.host_bytes if section.asynchronous else 0)
    for shape, element_size in (*replicated, *sharded):
        for first, last in row_ranges(shape, element_size):
            num_bytes = shape.numel() * element_size
            if shape and shape[0]:
                num_bytes = num_bytes // shape[0] * (last - first)
            room.take(num_bytes, pinned=device_type == "cuda")
    # torch's writer holds the last piece of each tensor.
    pieces = [min(shape.numel() * element_size, PIECE_BYTES) for shape, element_size in sharded]
    items = {
        "checkpoint_copies": room.num_bytes,
        "checkpoint_pieces": sum(pieces) if room.left_bytes else 0,
        "images_ahead": BATCHES * config.data.batch_size * 3 * config.data.image_size**2,
        "dataset_index": BYTES_PER_IMAGE * size.num_images + 8 * size.num_classes,
    }
    return HostMemory(items, room.left_bytes)


def ranks_of_node(size: JobSize) -> int:
    return min(size.num_ranks, RANKS_PER_NODE)


def _replicated(config: Config) -> list[Shape]:
    with FakeTensorMode():
        network = new_network(config)
        trained = [p for p in network.parameters() if p.requires_grad]
        tensors = [*network.state_dict().values(), *trained * MOMENTS[config.optimizer.name]]
        return [(tensor.shape, tensor.element_size()) for tensor in tensors]


def _sharded(config: Config, size: JobSize) -> list[Shape]:
    found = []
    for own, own_size in jobs_of(config, size):
        state = made_up_head(without_kernels(own), 8 * size.num_ranks, CPU).sharded_state()
        rows = own_size.classes_per_rank
        found += [(torch.Size([rows, *t.shape[1:]]), t.element_size()) for t in state.values()]
    return found
