"""A backbone of random weights whose activations have the size that training gives them."""

import torch
from torch import nn

from kappaface_dist.backbones import build_backbone


def calibrated_backbone(name, embedding_size=64, image_size=32):
    """In eval mode; with untrained running statistics the numbers of deep nets would grow."""
    torch.manual_seed(0)
    model = build_backbone(name, embedding_size=embedding_size, image_size=image_size).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches, of which there is one
            module.reset_running_stats()
    with torch.no_grad():
        model(torch.rand(16, 3, image_size, image_size) * 2 - 1)
    return model.eval()
