"""Notes what lets the host wait for a GPU, and what the ranks send, on tensors that are fake.

What would be read of the device is answered. `pretend_gpu.py` puts it to use.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kappaface_dist.planning.memory_meter import tensors_in

PACKAGE = Path(__file__).resolve().parents[1]
# A place is where these were called from.
OWN_FILES = {"device_watch.py", "pretend_gpu.py", "pretend_backward.py", "ranks.py"}
# How many numbers come out depends on the numbers that go in.
COUNTING = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}


@dataclass(frozen=True)
class Wait:
    """Once that the host had to wait for the device.

    Attributes:
        place: file of the package and function, as "head/sampling.py choose_rows".
        why: the operator.
    """

    place: str
    why: str


@dataclass(frozen=True)
class Collective:
    """One collective of this rank.

    Attributes:
        place: as of a Wait.
    """

    name: str
    device: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    place: str


class DeviceWatch(TorchDispatchMode):
    """Notes waits and collectives, in order.

    Attributes:
        value: what the host reads of the device, as far as `answers` has nothing for it.
        answers: taken first, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self.collectives: list[Collective] = []
        self.value = 0.0
        self.answers: list[float] = []
        self._pinned: WeakSet[torch.UntypedStorage] = WeakSet()

    def synchronize(self, *_: Any) -> None:
        """torch.cuda.synchronize."""
        self.wait("synchronize")

    def wait(self, why: str) -> None:
        self.waits.append(Wait(place(), why))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name, _, overload = func.name().partition("::")[2].partition(".")
        if func.namespace == "c10d":
            self._note_collective(name, args)
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            kwargs["generator"] = None  # it draws nothing, and its device is none
        if name == "_local_scalar_dense":
            return self._read(args[0])
        if name in ("is_pinned", "_pin_memory", "pin_memory") or kwargs.get("pin_memory"):
            return self._pin(name, func, args, kwargs)
        if name in COUNTING:
            if _on_gpu(args):
                self.wait(name)
            return _at_most(name, args)
        if name == "addmm" and overload.startswith("dtype"):
            return _add_product(*args, **kwargs)
        if name in ("index", "index_put_", "index_put", "_index_put_impl_"):
            masks = [t for t in args[1] if t is not None and t.dtype in (torch.bool, torch.uint8)]
            if masks:
                if _on_gpu(args):
                    self.wait(f"{name} by a mask")
                args = (args[0], _whole_rows(args[1]), *args[2:])
        if self._is_blocking_copy(name, args, kwargs):
            self.wait("copy between host and device")
        return func(*args, **kwargs)

    def _read(self, tensor: torch.Tensor) -> float | int | bool:
        if not tensor.is_cuda:
            return 1.0 if tensor.dtype.is_floating_point else 1  # such as an optimizer's steps
        self.wait("read of a value")
        return self._answer(tensor.dtype)

    def _answer(self, dtype: torch.dtype) -> float | int | bool:
        value = self.answers.pop(0) if self.answers else self.value
        if dtype == torch.bool:
            return bool(value)
        return float(value) if dtype.is_floating_point else int(value)

    def to_list(self, tensor: torch.Tensor) -> Any:
        """Tensor.tolist: one wait, whatever the number of values."""
        if tensor.is_cuda:
            self.wait("read of values")
        return self.to_numpy(tensor).tolist()

    def to_numpy(self, tensor: torch.Tensor) -> np.ndarray:
        """Tensor.numpy, of a tensor in host memory."""
        answers = [self._answer(tensor.dtype) for _ in range(tensor.numel())]
        return np.array(answers).reshape(tensor.shape)

    def _pin(self, name: str, func: Any, args: tuple, kwargs: dict) -> Any:
        if name == "is_pinned":
            return args[0].untyped_storage() in self._pinned
        if "pin_memory" in kwargs:
            out = func(*args, **{**kwargs, "pin_memory": False})
        else:
            out = args[0].clone()
        self._pinned.add(out.untyped_storage())
        return out

    def _is_blocking_copy(self, name: str, args: tuple, kwargs: dict) -> bool:
        """A copy between host and device that is not both asynchronous and of pinned memory."""
        if name == "copy_":
            target, source = args[0].device.type, args[1]
            asynchronous = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            host = args[0] if target == "cpu" else source
        elif name == "_to_copy":
            source = host = args[0]
            target = torch.device(kwargs.get("device") or source.device).type
            asynchronous = kwargs.get("non_blocking", False)
        else:
            return False
        if {target, source.device.type} != {"cpu", "cuda"}:
            return False
        return not asynchronous or host.untyped_storage() not in self._pinned

    def _note_collective(self, name: str, args: tuple) -> None:
        tensors = tensors_in(args)
        # A gather names what it fills first, a reduce-scatter too; what is sent is the last.
        sent = tensors[-1] if tensors else torch.empty(0)
        self.collectives.append(
            Collective(name, sent.device.type, sent.dtype, tuple(sent.shape), place())
        )


def _on_gpu(args: tuple) -> bool:
    return any(tensor.is_cuda for tensor in tensors_in(args))


def place() -> str:
    """The innermost function of the package, but for OWN_FILES."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and path.name not in OWN_FILES:
            return f"{path.relative_to(PACKAGE)} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _add_product(
    a_MN: torch.Tensor,
    b_MX: torch.Tensor,
    c_XN: torch.Tensor,
    out_dtype: torch.dtype,
    *,
    out: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """addmm with sums of another type: torch before 2.13 takes the type for a factor.

    As on a GPU, nothing is made but what it gives.
    """
    shape = (len(b_MX), c_XN.shape[1])
    if shape != tuple(a_MN.shape) or b_MX.shape[1] != len(c_XN):
        raise ValueError(f"{tuple(a_MN.shape)} + {tuple(b_MX.shape)} @ {tuple(c_XN.shape)}")
    return a_MN.new_empty(shape, dtype=out_dtype) if out is None else out


def _at_most(name: str, args: tuple) -> Any:
    """The largest result that an operator with a result of unknown size can have."""
    x = args[0]
    if name == "equal":
        return True
    if name == "nonzero":
        return x.new_empty(x.numel(), x.dim(), dtype=torch.int64)
    if name == "masked_select":
        return x.new_empty(x.numel())
    indices = x.new_empty(x.numel(), dtype=torch.int64)
    return x.new_empty(x.numel()), indices, indices


def _whole_rows(indices: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Masks replaced by the indices of all that they could choose."""
    whole: list[torch.Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            whole += [index.new_empty(index.numel(), dtype=torch.int64)] * index.dim()
        else:
            whole.append(index)
    return whole
