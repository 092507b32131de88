"""What a teacher adds to a step: memory and work, counted on fake tensors.

Exports that compute in their own way (.onnx, .pt2) are counted as the network that they are of.
"""

from functools import lru_cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kappaface_dist.backbones.counting import count_cost
from kappaface_dist.config.keys import Config
from kappaface_dist.models.export import BackboneSettings
from kappaface_dist.models.teacher import load_teacher
from kappaface_dist.planning.memory_meter import MemoryMeter, num_bytes


def teacher_items(config: Config) -> dict[str, int]:
    """Bytes of a teacher's weights and, at most, of its forward pass; {} without one that runs."""
    if config.distill.model is None or config.distill.cache is not None:
        return {}
    settings = _settings(config.distill.model, config.data.image_size)
    with FakeTensorMode(), torch.no_grad():
        network = settings.build().eval()
        side = config.data.image_size
        image_B3HW = torch.empty(config.data.batch_size, 3, side, side)
        half = config.precision == "bf16"
        with MemoryMeter() as meter, torch.autocast("cpu", torch.bfloat16, enabled=half):
            network(image_B3HW)
        weights = num_bytes([*network.parameters(), *network.buffers()])
        return {"teacher": weights, "teacher_activations": meter.peak_bytes}


def teacher_flops(config: Config) -> int:
    """Operations for an image, 0 without one that runs."""
    if config.distill.model is None or config.distill.cache is not None:
        return 0
    settings = vars(_settings(config.distill.model, config.data.image_size)).copy()
    return count_cost(settings.pop("name"), **settings).forward_flops


@lru_cache(maxsize=4)
def _settings(path: str, image_size: int) -> BackboneSettings:
    settings = load_teacher(path, image_size).settings
    if settings is None:
        raise ValueError(
            f"distill.model {path} is another program's, and what it takes cannot be counted: plan"
            " with distill.model=null, or with an export of ours of about its size"
        )
    return settings
