"""Any image network of timm (Wightman, "PyTorch Image Models"), as timm/NAME.

timm's network as it is, up to its pooled features; behind it our last layer and the normalisation
of the embedding. It takes the images that all our networks take, and gives timm's the mean and
spread that it is made for. timm is an extra, and nothing is ever downloaded.
Shapes: B images, F features, D embedding size, H W image size.
"""

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from kappaface_dist.backbones.layers import BATCH_NORMS

PREFIX = "timm/"


class TimmNetwork(nn.Module):
    """image_B3HW -> embedding_BD; float32 under autocast too, as the other networks' is.

    Args:
        trunk: timm's, image_B3HW -> features [B, F].
        mean, std: of a channel's pixels, on a scale from 0 to 1, that trunk is made for.
    """

    scale_311: torch.Tensor
    shift_311: torch.Tensor

    def __init__(
        self,
        trunk: nn.Module,
        num_features: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        embedding_size: int,
        dropout: float,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        # Our pixels p are (x + 1) / 2 of theirs: (p - mean) / std = x * scale + shift.
        mean_311, std_311 = (torch.tensor(number).view(3, 1, 1) for number in (mean, std))
        self.register_buffer("scale_311", 0.5 / std_311)
        self.register_buffer("shift_311", (0.5 - mean_311) / std_311)
        self.trunk = trunk
        self.fc = nn.Linear(num_features, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        # A scale per embedding dimension would only distort the cosine that the head trains.
        self.features.weight.requires_grad = False
        self.in_forward = False
        if checkpointing:
            for module in trunk.modules():
                if isinstance(module, BATCH_NORMS):
                    module.register_forward_pre_hook(self._before_norm)
                    # Always: a recomputation ends in the middle, where it has what it needs.
                    module.register_forward_hook(_after_norm, always_call=True)

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        self.in_forward = True
        x_BF = self.trunk(image_B3HW * self.scale_311 + self.shift_311)
        self.in_forward = False
        x_BF = F.dropout(x_BF, self.dropout, self.training)
        with torch.autocast(x_BF.device.type, enabled=False):
            return self.features(self.fc(x_BF.float()))

    def _before_norm(self, norm: Any, _: Any) -> None:
        # Called from without: a recomputation, whose batch is in the running statistics already.
        if not self.in_forward:
            norm.kept = norm.momentum, norm.num_batches_tracked
            norm.momentum, norm.num_batches_tracked = 0.0, None


def _after_norm(norm: Any, *_: Any) -> None:
    if "kept" in vars(norm):
        norm.momentum, norm.num_batches_tracked = vars(norm).pop("kept")


def build(
    name: str,
    *,
    embedding_size: int,
    image_size: int,
    dropout: float,
    drop_path: float | None,
    checkpointing: bool | Sequence[int],
) -> TimmNetwork:
    """The network timm/NAME with random weights.

    Raises:
        ValueError: timm has no such network, or it cannot be built as asked for.
        RuntimeError: timm cannot be imported.
    """
    timm = import_timm()
    bare = name.removeprefix(PREFIX)
    _check_name(timm, bare)
    if not isinstance(checkpointing, bool):
        raise ValueError(
            f"backbone.checkpointing is {list(checkpointing)}, and timm's networks have no stages"
            " to choose from: set it to true or false"
        )
    card = timm.get_pretrained_cfg(bare)
    settings: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    if drop_path is not None:
        settings["drop_path_rate"] = drop_path
    # What is made for one size of image must be told which; some do not say that they are.
    sized = settings | {"img_size": image_size}
    choices = [sized] if card is not None and card.fixed_input_size else [settings, sized]
    problem: ValueError | None = None
    for choice in choices:
        try:
            make = partial(_make_trunk, timm, bare, choice, checkpointing)
            trunk, num_features, unused = _build_trunk(make, image_size)
            break
        except ValueError as error:
            problem = problem or error
    else:
        asked = [f"{image_size} pixels"]
        asked += [f"backbone.drop_path={drop_path}"] * (drop_path is not None)
        asked += ["backbone.checkpointing=true"] * checkpointing
        raise ValueError(
            f"{name} cannot be built for {', '.join(asked)} ({problem}): change these, or take"
            " another network"
        ) from problem
    for key, parameter in trunk.named_parameters():
        if key in unused:
            parameter.requires_grad = False  # DDP would wait for its gradient
    return TimmNetwork(
        trunk,
        num_features,
        *((0.5,) * 3,) * 2 if card is None else (card.mean, card.std),
        embedding_size=embedding_size,
        dropout=dropout,
        checkpointing=checkpointing,
    )


def with_sync_batchnorm(network: TimmNetwork) -> TimmNetwork:
    """The same with statistics of all ranks; timm's normalisations may hold an activation."""
    import_timm()
    from timm.layers import convert_sync_batchnorm

    network.trunk = convert_sync_batchnorm(network.trunk)
    network.features = nn.SyncBatchNorm.convert_sync_batchnorm(network.features)
    return network


def import_timm() -> Any:
    """The module timm.

    Raises:
        RuntimeError: it is not installed, or does not fit the installed torch.
    """
    try:
        import timm
    except ImportError as error:
        raise RuntimeError(
            f"timm's networks need {error.name}: pip install 'kappaface_dist[timm]'"
        ) from error
    except RuntimeError as error:  # of torchvision, where its operators do not load
        raise RuntimeError(
            f"timm cannot be imported ({error}): install the torchvision that is built for torch"
            f" {torch.__version__}"
        ) from error
    return timm


def _check_name(timm: Any, bare: str) -> None:
    network, _, tag = bare.partition(".")
    if network not in timm.list_models():
        near = difflib.get_close_matches(network, timm.list_models(), n=3)
        raise ValueError(
            f"backbone.name is {PREFIX + bare!r}, and timm {timm.__version__} has no such network:"
            f" choose one of timm.list_models(), such as {', '.join(near) or 'resnet18'}"
        )
    if tag:
        raise ValueError(
            f"backbone.name is {PREFIX + bare!r}, and .{tag} names weights, which are not"
            f" downloaded: take {PREFIX + network}, and a file of weights with"
            " tools/import_backbone.py and backbone.init"
        )


def _make_trunk(timm: Any, bare: str, settings: dict[str, Any], checkpointing: bool) -> nn.Module:
    trunk = timm.create_model(bare, **settings)
    if checkpointing:
        trunk.set_grad_checkpointing(True)
    return trunk


def _build_trunk(make: Callable[[], nn.Module], image_size: int) -> tuple[nn.Module, int, set[str]]:
    """(the network, F, names of parameters that do not take part), tried on a sketch of it."""
    try:
        with unset_fake_temporarily() as fake, torch.device("meta"):
            sketch = make()
            num_features, unused = _try_out(sketch.train(), image_size)
        trunk = make() if fake is None else sketch
    except Exception as error:  # of any kind, by network: its own checks and its arithmetic
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    return trunk if fake is None else _with_empty_tensors(trunk), num_features, unused


def _with_empty_tensors(sketch: nn.Module) -> nn.Module:
    """A network on the meta device, of fake tensors: timm's initial values cannot be made of them.

    To be called while tensors are fake.
    """
    for module in sketch.modules():
        for key, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, key, nn.Parameter(empty, parameter.requires_grad))
        for key, buffer in module.named_buffers(recurse=False):
            setattr(module, key, torch.empty(buffer.shape, dtype=buffer.dtype))
    return sketch


def _try_out(trunk: nn.Module, image_size: int) -> tuple[int, set[str]]:
    """(F, names of parameters that do not take part), found without computing anything."""
    x_BF = trunk(torch.empty(2, 3, image_size, image_size))
    if not isinstance(x_BF, torch.Tensor) or x_BF.ndim != 2:
        shape = list(x_BF.shape) if isinstance(x_BF, torch.Tensor) else type(x_BF).__name__
        raise ValueError(f"its features are {shape}, expected a vector for each image")
    x_BF.sum().backward()
    return x_BF.shape[1], {key for key, p in trunk.named_parameters() if p.grad is None}
