"""DDP without its reducer, which needs torch's engine: the same buckets, filled as they would be.

torch's own function deals the parameters out to buckets. A gradient becomes a view of its bucket
as soon as it is there, and a bucket with all of them is handed to our hook, as by the reducer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from kappaface_dist.training.data_parallel import DataParallel, Exchange, start_exchange


class PretendDataParallel(DataParallel):
    """See above; for gradients that are views of their bucket, as our DataParallel's are."""

    def __init__(
        self, backbone: nn.Module, gradient_dtype: torch.dtype, *, bucket_cap_mb: float, **_: Any
    ):
        nn.Module.__init__(self)
        self.module, self._exchange, self._syncs = backbone, Exchange(gradient_dtype), True
        # The reducer, too, takes them as their gradients come after its first step.
        trained: list[torch.Tensor] = [
            p for p in reversed(list(backbone.parameters())) if p.requires_grad
        ]
        limit, places = int(bucket_cap_mb * 2**20), list(range(len(trained)))
        dealt = dist._compute_bucket_assignment_by_size(
            trained, [limit], [False] * len(trained), places
        )
        for bucket in dealt[0]:
            self._fill([trained[place] for place in bucket])

    def _fill(self, parameters: list[torch.Tensor]) -> None:
        bucket = _Bucket(parameters)

        def arrived(parameter: torch.Tensor) -> None:
            if self._syncs and bucket.take(parameter):
                start_exchange(self._exchange, bucket)  # type: ignore[arg-type]

        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(arrived)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        self._syncs = False
        try:
            yield
        finally:
            self._syncs = True


class _Bucket:
    """Gradients that are exchanged together."""

    def __init__(self, parameters: list[torch.Tensor]):
        self._flat = parameters[0].new_zeros(sum(p.numel() for p in parameters))
        parts = self._flat.split([p.numel() for p in parameters])
        self._views = {
            id(p): part.as_strided(p.shape, p.stride(), part.storage_offset())
            for p, part in zip(parameters, parts, strict=True)
        }
        self._missing = len(parameters)

    def buffer(self) -> torch.Tensor:
        return self._flat

    def take(self, parameter: torch.Tensor) -> bool:
        """Move its gradient here; whether it was the last."""
        view = self._views[id(parameter)]
        if parameter.grad is not view:
            assert parameter.grad is not None
            view.copy_(parameter.grad)
            parameter.grad = view
        self._missing = (self._missing or len(self._views)) - 1
        return not self._missing
