"""Images with several labels at the head, against the mean of dense losses in float64."""

import numpy as np
import pytest
import torch

from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.head import KappaFace, PartialFC, SGDRows
from kappaface_dist.head.shard import initial_centres
from kappaface_dist.training.marks import epochs_later, for_each_label, labels, slots
from tests.dense_head import dense_loss, torch_optimizer
from tests.head_steps import own_images
from tests.processes import run_on_ranks

NUM_CLASSES, NUM_IMAGES, NUM_LABELS, SIZE, NUM_STEPS, LR = 37, 24, 3, 16, 3, 0.01
# Float64 sums in another order.
EXACT = {"rtol": 1e-8, "atol": 1e-11}


def images_of(step):
    generator = torch.Generator().manual_seed(step)
    embedding_GD = torch.randn(NUM_IMAGES, SIZE, dtype=torch.float64, generator=generator)
    chosen = [torch.randperm(NUM_CLASSES, generator=generator) for _ in range(NUM_IMAGES)]
    return embedding_GD, torch.stack(chosen)[:, :NUM_LABELS]


def train(parts, dtype=torch.float64):
    """Losses, embedding gradients; centres, counts and statistics at the end."""
    head = PartialFC(
        NUM_CLASSES,
        SIZE,
        KappaFace(estimator="plugin", shrinkage=0.0),
        images_per_class=np.full(NUM_CLASSES, 9),
        optimizer=SGDRows(),
        dtype=dtype,
    )
    losses, gradients = [], []
    for step in range(NUM_STEPS):
        embedding_GD, label_GL = images_of(step)
        batches, embeddings = [], []
        for embedding_BD, label_BL in zip(
            own_images(embedding_GD).chunk(parts), own_images(label_GL).chunk(parts), strict=True
        ):
            epoch_B = torch.zeros(len(label_BL), dtype=torch.long)
            batches.append(Batch(torch.empty(len(label_BL)), label_BL, epoch_B))
            embeddings.append(embedding_BD.to(dtype).clone().requires_grad_())
        if parts > 1:
            head.announce(labels(batches))
        for batch, embedding_BD in zip(batches, embeddings, strict=True):
            later = epochs_later([batch], [0])
            loss = head(
                for_each_label(embedding_BD, [batch]), labels([batch]), later, slots([batch])
            )
            (loss / parts).backward()
            losses.append(loss.item() / parts)
        gradients.append(np.concatenate([e.grad.numpy() for e in embeddings]))
        head.step(LR)
    weight = head.class_margins.statistics.weight_K.numpy().copy()
    total = head.class_margins.statistics.sum_KX.numpy().copy()
    return losses, gradients, head.weight_KD.numpy(), weight, total, head.margins().numpy()


@pytest.mark.parametrize(("num_ranks", "parts"), [(0, 1), (1, 2), (2, 1), (3, 2)])
def test_the_loss_is_the_mean_over_the_labels_of_dense_losses(num_ranks, parts):
    results = run_on_ranks(num_ranks, train, parts)
    weight_CD = initial_centres(
        range(NUM_CLASSES), SIZE, 0, torch.float64, torch.device("cpu")
    ).requires_grad_()
    optimizer = torch_optimizer(SGDRows(), weight_CD)
    optimizer.param_groups[0]["lr"] = LR
    margin_C = torch.from_numpy(np.concatenate([result[5] for result in results])).double()
    count_C, sum_CD = np.zeros(NUM_CLASSES), np.zeros((NUM_CLASSES, SIZE))
    for step in range(NUM_STEPS):
        embedding_GD, label_GL = images_of(step)
        embedding_GD.requires_grad_()
        each = [
            dense_loss(embedding_GD, weight_CD, label_G, margin_C, KappaFace().scale)
            for label_G in label_GL.T
        ]
        loss = sum(each) / NUM_LABELS
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for losses, *_ in results:
            ours = sum(losses[step * parts : (step + 1) * parts])
            np.testing.assert_allclose(ours, loss.item(), **EXACT)
        gradient = np.concatenate([gradients[step] for _, gradients, *_ in results])
        gradient = gradient / max(num_ranks, 1)  # DDP takes the mean over the ranks
        np.testing.assert_allclose(gradient, embedding_GD.grad.numpy(), **EXACT)
        unit_GD = torch.nn.functional.normalize(embedding_GD.detach()).numpy()
        for label_G in label_GL.T.numpy():
            np.add.at(count_C, label_G, 1)
            np.add.at(sum_CD, label_G, unit_GD)
    weight = np.concatenate([result[2] for result in results])
    np.testing.assert_allclose(weight, weight_CD.detach().numpy(), **EXACT)
    # Each image counts in each of its classes, once.
    np.testing.assert_array_equal(np.concatenate([result[3] for result in results]), count_C)
    total = np.concatenate([result[4] for result in results])
    np.testing.assert_allclose(total, sum_CD, rtol=1e-4, atol=1e-5)  # kept in fp32
