"""What the backbone takes, beside what torch's documentation says of its optimizers."""

import dataclasses

import pytest

from kappaface_dist.config.keys import Backbone, Config, Data, Optimizer
from kappaface_dist.planning.backbone_memory import backbone_items
from kappaface_dist.training.build import new_network
from kappaface_dist.training.optim import parameter_groups

CONFIG = Config(
    data=Data(batch_size=2, image_size=32), backbone=Backbone(name="tiny", embedding_size=32)
)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimizer_on_a_gpu_takes_a_copy_of_all_gradients_it_updates_at_once(name):
    """For SGD those that decay, for AdamW roots of its second moments: one group at a time."""
    config = dataclasses.replace(CONFIG, optimizer=Optimizer(name=name))
    decaying = parameter_groups(new_network(config), 0.1)[0]["params"]
    num_bytes = 4 * sum(p.numel() for p in decaying)
    on_gpu = backbone_items(config, 1, "cuda")["optimizer_workspace"]
    assert on_gpu == pytest.approx(num_bytes, rel=0.01)
    # On a CPU what the update of the largest parameter takes, a few times its size.
    largest = max(4 * p.numel() for p in decaying)
    on_cpu = backbone_items(config, 1)["optimizer_workspace"]
    assert on_cpu / largest == pytest.approx({"sgd": 1.0, "adamw": 2.5}[name], abs=0.1)
