"""The state of the backbone's optimizer in a checkpoint, by the names of the parameters."""

from pathlib import Path

import torch
from torch import nn

from kappaface_dist.checkpoint.tensors import Tensors, stored_tensors


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> Tensors:
    """The optimizer's state by parameter name; empty before the first step."""
    names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"optimizer.{names[parameter]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def make_optimizer_tensors(
    folder: Path, optimizer: torch.optim.Optimizer, model: nn.Module
) -> Tensors:
    """Give a fresh optimizer the state tensors that the checkpoint has; `load` then fills them.

    The alternative, a step with zero gradients, would change momentum and weights.
    """
    stored = stored_tensors(folder)
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        for key, (shape, dtype) in stored.items():
            if key.startswith(prefix):
                # Step counters live on the CPU, tensors of the parameter's shape beside it.
                device = parameter.device if shape == list(parameter.shape) else "cpu"
                optimizer.state[parameter][key.removeprefix(prefix)] = torch.empty(
                    shape, dtype=dtype, device=device
                )
    return optimizer_tensors(optimizer, model)
