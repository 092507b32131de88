"""Large tensors go to a checkpoint in pieces of rows: no second copy of one, on host or device.

What a save under way needs of a tensor that changes meanwhile is copied into host memory, piece by
piece, as far as there is room; the others are read while the training waits.
Shapes: K rows, X anything.
"""

import dataclasses
import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

# Pinned memory is handed out in powers of two: a copy of this size wastes none.
PIECE_BYTES = 64 << 20

Place = tuple[str, int]  # name of a tensor, first row of a piece


def row_ranges(shape: Sequence[int], element_size: int) -> list[tuple[int, int]]:
    """(first, last) row of each piece of a tensor; a small one is one piece, as is a number."""
    num_rows = shape[0] if shape else 1
    num_bytes = math.prod(shape) * element_size
    if num_bytes <= PIECE_BYTES:
        return [(0, num_rows)]
    step = max(PIECE_BYTES * num_rows // num_bytes, 1)
    return [(first, min(first + step, num_rows)) for first in range(0, num_rows, step)]


def copy_bytes(num_bytes: int, *, pinned: bool) -> int:
    """What the memory for a copy takes: torch rounds pinned memory up to a power of two."""
    return 1 << (num_bytes - 1).bit_length() if pinned and num_bytes else num_bytes


class Room:
    """So many bytes of host memory for copies.

    Args:
        limit: at most; None: as many as are asked for.

    Attributes:
        num_bytes: given away.
        left_bytes: of what found no room.
    """

    def __init__(self, limit: int | None = None):
        self.num_bytes = self.left_bytes = 0
        self._limit = limit

    def take(self, num_bytes: int, *, pinned: bool) -> bool:
        """Whether there is room for a copy of a piece, which has it then."""
        size = copy_bytes(num_bytes, pinned=pinned)
        if self._limit is not None and self.num_bytes + size > self._limit:
            self.left_bytes += num_bytes
            return False
        self.num_bytes += size
        return True


class HostCopies:
    """Copies of tensors in host memory, which is kept from one save to the next.

    Attributes:
        room: the memory that is set aside.
    """

    def __init__(self, limit: int | None = None):
        self.room = Room(limit)
        self._copies: dict[Place, torch.Tensor] = {}
        self._known: set[str] = set()

    def reserve(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set memory aside for copies of these tensors, as far as there is room."""
        for name, tensor in tensors.items():
            if name in self._known:
                continue
            self._known.add(name)
            for first, last in row_ranges(tensor.shape, tensor.element_size()):
                part = _rows(tensor, first, last)
                if self.room.take(part.nbytes, pinned=tensor.is_cuda):
                    # Pinned memory takes a GPU's copy at full speed.
                    self._copies[name, first] = torch.empty(
                        part.shape, dtype=part.dtype, pin_memory=tensor.is_cuda
                    ).zero_()

    def take(self, tensors: dict[str, torch.Tensor]) -> dict[Place, torch.Tensor]:
        """The pieces of the tensors as they are now, those for which there is room."""
        self.reserve(tensors)
        taken = {}
        for name, tensor in tensors.items():
            for first, last in row_ranges(tensor.shape, tensor.element_size()):
                copy = self._copies.get((name, first))
                if copy is not None:
                    copy.copy_(_rows(tensor.detach(), first, last), non_blocking=True)
                    taken[name, first] = copy
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return taken


class PiecePlanner(DefaultSavePlanner):
    """torch's plan of what a rank writes, in pieces; those that were not copied come first.

    Args:
        copies: of pieces, as `HostCopies.take` returns them; None: nothing changes meanwhile.

    Attributes:
        all_read: set once the tensors may change: no piece is wanted of them any more.
    """

    def __init__(self, copies: dict[Place, torch.Tensor] | None = None):
        super().__init__()
        self.all_read = threading.Event()
        self._copies, self._may_change = copies or {}, copies is not None
        self._unread: set[MetadataIndex] = set()

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        items = [piece for item in plan.items for piece in _pieces(item)]
        items.sort(key=lambda item: self._copy(item) is not None)
        self.plan = dataclasses.replace(plan, items=items)
        return self.plan

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        plan = super().finish_plan(new_plan)
        self._unread = {item.index for item in plan.items if self._copy(item) is None}
        if not self._unread:
            self.all_read.set()
        return plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        copy = self._copy(write_item)
        if copy is not None:
            return copy
        # Memory of its own where the training may go on before the last piece is written.
        part = self._live(write_item).detach().to("cpu", copy=self._may_change)
        self._unread.discard(write_item.index)
        if not self._unread:
            self.all_read.set()
        return part

    def _copy(self, item: WriteItem) -> torch.Tensor | None:
        return self._copies.get((item.index.fqn, self._first_row(item)))

    def _live(self, item: WriteItem) -> torch.Tensor:
        assert item.tensor_data is not None
        tensor, first = _local(self.state_dict[item.index.fqn]), self._first_row(item)
        sizes = item.tensor_data.chunk.sizes
        return _rows(tensor, first, first + sizes[0] if sizes else 1)

    def _first_row(self, item: WriteItem) -> int:
        """Within this rank's rows."""
        assert item.tensor_data is not None
        offsets = item.tensor_data.chunk.offsets
        if not offsets:
            return 0
        whole = self.state_dict[item.index.fqn]
        return offsets[0] - (_start(whole) if isinstance(whole, DTensor) else 0)


def _rows(tensor_KX: torch.Tensor, first: int, last: int) -> torch.Tensor:
    return tensor_KX[first:last] if tensor_KX.dim() else tensor_KX


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _start(tensor: DTensor) -> int:
    """The first of all rows that this rank has: torch.chunk's partition."""
    mesh = tensor.device_mesh
    return mesh.get_local_rank() * -(-tensor.shape[0] // mesh.size())


def _pieces(item: WriteItem) -> list[WriteItem]:
    """An item for each piece of one."""
    data = item.tensor_data
    if data is None or not data.chunk.sizes:
        return [item]
    ranges = row_ranges(data.chunk.sizes, data.properties.dtype.itemsize)
    if len(ranges) == 1:
        return [item]
    (start, *others), (_, *sizes) = data.chunk.offsets, data.chunk.sizes
    items = []
    for first, last in ranges:
        offsets = torch.Size([start + first, *others])
        chunk = ChunkStorageMetadata(offsets, torch.Size([last - first, *sizes]))
        items.append(
            dataclasses.replace(
                item,
                index=MetadataIndex(item.index.fqn, offsets),
                type=WriteItemType.SHARD,
                tensor_data=dataclasses.replace(data, chunk=chunk),
            )
        )
    return items
