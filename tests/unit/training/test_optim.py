"""Learning-rate schedules and parameter groups."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from kappaface_dist.training.optim import build_optimizer, scaled_lr, schedule_factor
from tests.apex_stand_in import install


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


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", "FusedSGD"), ("adamw", "FusedAdam"), ("lamb", "FusedLAMB")]
)
def test_apex_gets_the_settings(monkeypatch, name, kind):
    install(monkeypatch)
    network = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(
        name, network, lr=0.3, momentum=0.8, weight_decay=0.01, implementation="apex"
    )
    assert type(optimizer).__name__ == kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {0.3}
    if name == "sgd":
        assert {group["momentum"] for group in optimizer.param_groups} == {0.8}
    else:
        assert optimizer.options["adam_w_mode"] is True


@pytest.mark.skipif(find_spec("apex") is not None, reason="apex is installed here")
@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_without_apex_its_optimizers_are_a_clear_error(name):
    with pytest.raises(RuntimeError, match=r"optimizer\.implementation is apex, .*No module named"):
        build_optimizer(
            name,
            torch.nn.Linear(3, 2),
            lr=0.1,
            momentum=0.9,
            weight_decay=0.0,
            implementation="apex",
        )
