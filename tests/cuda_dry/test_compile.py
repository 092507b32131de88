"""backbone.compile for a GPU that is not here: the whole network is one graph."""

from unittest import mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kappaface_dist.backbones import build_backbone
from kappaface_dist.planning.pretend_gpu import DEVICE, apply_to_module

SIZE = 32
# One of each kind; the others of a kind have more blocks.
NETWORKS = {
    "tiny": {},
    "tiny_gn": {},
    "r50": {"depths": [1, 2, 1, 1]},
    "mbf": {"depths": [1, 1, 1, 1]},
    "vit_t": {"depths": [2]},
    "r18": {"depths": [1, 1, 1, 1], "checkpointing": [1, 2], "dropout": 0.4},
    "vit_s": {"depths": [2], "checkpointing": True, "drop_path": 0.1},
}


def graphs_of(network):
    """The graphs that torch.compile makes of a training step's forward pass; an error if it would
    need more than one.
    """
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    half = mock.patch("torch.cuda.is_bf16_supported", return_value=True)
    there = mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False)
    move = mock.patch.object(nn.Module, "_apply", apply_to_module)
    # torch.compile goes round modes that watch operators, so none is on here.
    with FakeTensorMode(allow_non_fake_inputs=True), half, there, move:
        network = network.to(DEVICE)
        compiled = torch.compile(network, backend=backend, fullgraph=True, dynamic=False)
        with torch.autocast("cuda", torch.bfloat16):
            embedding_BD = compiled(torch.empty(2, 3, SIZE, SIZE, device=DEVICE))
        assert embedding_BD.device == DEVICE
        assert embedding_BD.shape == (2, 64)
    return graphs


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_one_graph(name):
    network = build_backbone(name, embedding_size=64, image_size=SIZE, **NETWORKS[name])
    (graph,) = graphs_of(network)
    assert len(graph.graph.nodes) > 20


class Breaks(nn.Module):
    """A network that looks at its numbers on the way."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image_B3HW):
        if image_B3HW.sum().item() > 0:
            image_B3HW = -image_B3HW
        return self.network(image_B3HW)


def test_a_break_is_noticed():
    network = build_backbone("tiny", embedding_size=64, image_size=SIZE)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        graphs_of(Breaks(network))
