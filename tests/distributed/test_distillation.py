"""What a teacher teaches does not depend on the number of ranks."""

import numpy as np
import torch

from kappaface_dist.backbones import build_backbone
from kappaface_dist.config.keys import Backbone, Config, Data, Distill, Optimizer, Run
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.models.export import save_backbone
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import build_learner
from kappaface_dist.training.step import train_step
from tests.processes import run_on_ranks

IMAGES = 8  # of all ranks


def step(teacher):
    """Parameters after a step with a teacher, and the mean loss that is reported."""
    own = IMAGES // parallel.world_size()
    config = Config(
        run=Run(steps=1),
        data=Data(train="x.rec", batch_size=own, image_size=32),
        backbone=Backbone(name="tiny_gn", embedding_size=16),
        optimizer=Optimizer(lr=0.1),
        distill=Distill(model=str(teacher), weight=4.0),
        margin={"name": "cosface", "margin": 0.1, "scale": 8.0},
    )
    learner = build_learner(config, np.full(6, 5), torch.device("cpu"))
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(IMAGES, 3, 32, 32, generator=generator) * 2 - 1
    label = torch.randint(6, (IMAGES,), generator=generator)
    mine = slice(parallel.rank() * own, (parallel.rank() + 1) * own)
    train_step(learner, [Batch(image[mine], label[mine])], 0.1, 0)
    parameters = {k: v.detach().numpy().copy() for k, v in learner.network.named_parameters()}
    return parameters, learner.distiller.take()["distill_loss"]


def test_two_ranks_learn_what_one_does(tmp_path):
    torch.manual_seed(3)
    network = build_backbone("tiny_gn", embedding_size=16, image_size=32)
    teacher = tmp_path / "teacher.safetensors"
    save_backbone(teacher, network, name="tiny_gn", embedding_size=16, image_size=32)
    (expected, loss), *_ = run_on_ranks(1, step, teacher)
    for found, found_loss in run_on_ranks(2, step, teacher):
        assert abs(found_loss - loss) < 1e-5
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
