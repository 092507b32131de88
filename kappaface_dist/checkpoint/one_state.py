"""Each rank's rows of classes as parts of one tensor of all classes, as checkpoints store them.

Shapes: C all classes, K classes of this shard, X anything.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from kappaface_dist.parallel import ranks as parallel

Tensors = dict[str, torch.Tensor]
# C: of all sharded tensors, or of each by its name.
NumClasses = int | dict[str, int]


def classes_of(num_classes: NumClasses, name: str) -> int:
    return num_classes if isinstance(num_classes, int) else num_classes[name]


def one_state(
    replicated: Tensors, sharded: Tensors, num_classes: NumClasses
) -> dict[str, torch.Tensor]:
    """What `write` and torch store: the tensors that are the same on every rank as they are, those
    [K, ...] of this rank's classes as views of one distributed tensor of all classes each.

    Args:
        replicated: tensors that are the same on every rank.
        sharded: tensors [K, ...] of this rank's classes, in torch.chunk's partition.
        num_classes: C.
    """
    if not dist.is_initialized():
        return replicated | sharded
    mesh: DeviceMesh | None = None
    whole: dict[str, torch.Tensor] = {}
    for name, tensor_KX in sharded.items():
        if mesh is None:
            mesh = init_device_mesh(tensor_KX.device.type, (parallel.world_size(),))
        shape = torch.Size((classes_of(num_classes, name), *tensor_KX.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        whole[name] = DTensor.from_local(
            tensor_KX, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
        )
    return replicated | whole
