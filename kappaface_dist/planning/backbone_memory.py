"""What the backbone takes of a rank's memory: run on tensors that hold nothing, and counted."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kappaface_dist.backbones.layers import BATCH_NORMS
from kappaface_dist.config.keys import Config
from kappaface_dist.planning.memory_meter import MemoryMeter, num_bytes
from kappaface_dist.training.build import DTYPES, new_network, new_optimizer


def backbone_items(config: Config, num_ranks: int, device_type: str = "cpu") -> dict[str, int]:
    """Parameters and running statistics, gradients, optimizer, images, activations, workspaces."""
    with FakeTensorMode():
        network = new_network(config)
        state = num_bytes([*network.parameters(), *network.buffers()])
        trained = [p for p in network.parameters() if p.requires_grad]
        section = config.optimizer
        # apex's holds the same, and need not be here.
        optimizer = new_optimizer(
            config, network, implementation="torch", foreach=device_type == "cuda"
        )
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


def normalised_channels(config: Config) -> tuple[list[int], list[int]]:
    """Channels of each BatchNorm that a batch meets in the forward pass, and of those that are
    computed once more in the backward pass.
    """
    met: list[int] = []
    with FakeTensorMode():
        network = new_network(config)
        for module in network.modules():
            if isinstance(module, BATCH_NORMS):
                # Before: a recomputation ends within the last layer of which it needs something.
                module.register_forward_pre_hook(lambda norm, _: met.append(norm.num_features))
        side = config.data.image_size
        embedding_BD = network(torch.empty(2, 3, side, side))
        forward = met.copy()
        embedding_BD.backward(torch.ones_like(embedding_BD))
    return forward, met[len(forward) :]


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
