"""One rank of a large job, alone: torch's fake process group, and answers that make sense.

The fake group's collectives do nothing at all, so a gather would hand out memory as it was. Here
the other ranks hand in what this one does: a gather repeats it, of objects too, a reduce-scatter
returns this rank's rows. Sums are left as they are: the other ranks' classes count as far away.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from kappaface_dist.parallel import ranks


class _Echo(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.name() == "c10d::_allgather_base_":
            out_GX, own_BX = args[0], args[1]
            out_GX.view(-1, *own_BX.shape).copy_(own_BX)
        elif func.name() == "c10d::_reduce_scatter_base_":
            own_BX, in_GX = args[0], args[1]
            own_BX.copy_(in_GX[: len(own_BX)])
        return result


@contextmanager
def pretend_ranks(num_ranks: int, rank: int = 0) -> Iterator[None]:
    """Inside, this process is `rank` of `num_ranks`; of one rank, no group is made."""
    if num_ranks == 1:
        yield
        return

    def gather_objects(value: Any, group: Any = None) -> list[Any]:
        return [value] * num_ranks

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_ranks)
    try:
        with _Echo(), mock.patch.object(ranks, "gather_objects", gather_objects):
            yield
    finally:
        dist.destroy_process_group()
