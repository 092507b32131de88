"""Learning-rate schedules and parameter groups."""

import pytest
import torch
from torch import nn

from kappaface_dist.optim import build_optimizer, scaled_lr, schedule_factor


def factor(position, schedule="polynomial", power=2.0):
    return schedule_factor(schedule, position, 1000, 100, power)


@pytest.mark.parametrize("schedule", ["polynomial", "cosine"])
def test_warm_up_then_down_to_zero(schedule):
    assert factor(0, schedule) == 0.0
    assert factor(50, schedule) == 0.5
    assert factor(100, schedule) == 1.0
    assert factor(1000, schedule) == pytest.approx(0.0, abs=1e-15)
    assert factor(1064, schedule) == pytest.approx(0.0, abs=1e-15)
    falling = [factor(position, schedule) for position in range(100, 1001, 50)]
    assert falling == sorted(falling, reverse=True)


def test_the_curves_between():
    assert factor(550) == pytest.approx(0.25)
    assert factor(550, power=1.0) == pytest.approx(0.5)
    assert factor(550, "cosine") == pytest.approx(0.5)
    assert schedule_factor("cosine", 0, 1000, 0, 2.0) == 1.0


def test_the_linear_rule():
    assert scaled_lr(0.1, 1024, 512) == pytest.approx(0.2)
    assert scaled_lr(0.1, 1024, None) == 0.1


def test_only_weights_of_products_decay():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Linear(4, 2))
    network[3].bias.requires_grad_(False)
    optimizer = build_optimizer("sgd", network, lr=0.1, momentum=0.9, weight_decay=0.01)
    decays = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    names = {name: decays.get(id(p)) for name, p in network.named_parameters()}
    assert names == {
        "0.weight": 0.01,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.0,
        "3.weight": 0.01,
        "3.bias": None,
    }
    assert isinstance(
        build_optimizer("adamw", network, lr=0.1, momentum=0.9, weight_decay=0.0), torch.optim.AdamW
    )
