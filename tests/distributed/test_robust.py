"""Images weighted by the trust in their labels, against dense float64 losses of each by itself."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.stats import norm

from kappaface_dist.head import Heads, KappaFace, PartialFC, SGDRows
from kappaface_dist.head.margins.image_trust import NUM_BINS
from kappaface_dist.head.shard import initial_centres
from kappaface_dist.parallel import ranks as parallel
from tests.dense_margins import MARGINS, margin_loss
from tests.head_steps import own_images
from tests.processes import run_on_ranks

NUM_CLASSES, SIZE, NUM_IMAGES, NUM_STEPS, SEED, LR = 31, 16, 24, 3, 5, 0.01
PLAIN = SGDRows(momentum=0.0, weight_decay=0.0)
KINDS = {"share": [0.2, 0.8], "mean": [0.1, 0.7], "std": 0.15}
# Float64 sums in another order; a few steps at scale 64 amplify the roundings.
EXACT = {"rtol": 1e-8, "atol": 1e-10}


def global_batch(step):
    """Images at all angles from their centres, of norms 0.5 to 8."""
    generator = torch.Generator().manual_seed(step)
    label_G = torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator)
    weight_CD = initial_centres(range(NUM_CLASSES), SIZE, SEED, torch.float64, torch.device("cpu"))
    noise_GD = torch.randn(NUM_IMAGES, SIZE, dtype=torch.float64, generator=generator)
    spread_G1 = torch.linspace(0.05, 1.0, NUM_IMAGES, dtype=torch.float64)[:, None]
    unit_GD = F.normalize(F.normalize(weight_CD[label_G]) + spread_G1 * noise_GD)
    norm_G = torch.linspace(0.5, 8, NUM_IMAGES, dtype=torch.float64)
    return unit_GD * norm_G.roll(7)[:, None], label_G


def build(margin, robust):
    head = PartialFC(
        NUM_CLASSES,
        SIZE,
        margin,
        images_per_class=np.arange(2, NUM_CLASSES + 2),
        optimizer=PLAIN,
        dtype=torch.float64,
        seed=SEED,
        robust=robust,
    )
    numbers = {
        "histogram": [0] * NUM_BINS,
        "kinds": [*KINDS["share"], *KINDS["mean"], KINDS["std"]],
    }
    head.class_margins.trust.load_counters(numbers)
    return head


def train(name, robust, parts=1):
    head = build(MARGINS[name], robust)
    losses, gradients = [], []
    for step in range(NUM_STEPS):
        embeddings, label_B = [], own_images(global_batch(step)[1])
        if parts > 1:
            head.announce(label_B)
        loss = 0.0
        own = own_images(global_batch(step)[0]).chunk(parts)
        for part_BD, part_B in zip(own, label_B.chunk(parts), strict=True):
            embeddings.append(part_BD.clone().requires_grad_())
            one = head(embeddings[-1], part_B) / parts
            one.backward()
            loss += one.item()
        losses.append(loss)
        gradient = torch.cat([one.grad for one in embeddings]) / parallel.world_size()
        gradients.append(gradient.numpy())
        head.step(LR)
    state = {key: tensor.numpy() for key, tensor in head.sharded_state().items()}
    return losses, gradients, state, head.class_margins.trust.counters()["histogram"]


def posterior(cosine_G):
    """P(clean | t) of scipy's densities."""
    low, high = (
        share * norm.pdf(cosine_G, mean, KINDS["std"])
        for share, mean in zip(KINDS["share"], KINDS["mean"], strict=True)
    )
    return torch.from_numpy(high / (low + high))


def densely(margin, margin_C, *, in_loss):
    """Losses, gradients, centres, all target cosines and what the statistics should have seen."""
    weight_CD = initial_centres(range(NUM_CLASSES), SIZE, SEED, torch.float64, torch.device("cpu"))
    weight_CD.requires_grad_()
    losses, gradients, seen, state = [], [], [], {}
    count_C, sum_CD = np.zeros(NUM_CLASSES), np.zeros((NUM_CLASSES, SIZE))
    every_C = torch.ones(NUM_CLASSES, dtype=torch.bool)
    for step in range(NUM_STEPS):
        embedding_GD, label_G = global_batch(step)
        embedding_GD.requires_grad_()
        m_G = margin_C[label_G]
        cosine_G = F.cosine_similarity(embedding_GD, weight_CD[label_G]).detach().numpy()
        weight_G = posterior(cosine_G)
        arguments = margin, embedding_GD, weight_CD, label_G, m_G, state, every_C
        one_by_one = [
            margin_loss(
                margin, embedding_GD[[i]], weight_CD, label_G[[i]], m_G[[i]], state, every_C
            )
            for i in range(NUM_IMAGES)
        ]
        loss_G = torch.stack([loss for loss, _ in one_by_one])
        loss = (loss_G * weight_G).mean() if in_loss else loss_G.mean()
        _, state = margin_loss(*arguments)  # of the batch as a whole
        weight_CD.grad = None
        loss.backward()
        with torch.no_grad():
            weight_CD -= LR * weight_CD.grad
        losses.append(loss.item())
        gradients.append(embedding_GD.grad.numpy())
        seen.append(cosine_G)
        clean_G = weight_G.numpy() >= 0.5
        clean = label_G.numpy()[clean_G]
        np.add.at(count_C, clean, 1)
        unit_GD = F.normalize(embedding_GD.detach()).numpy()
        np.add.at(sum_CD, clean, unit_GD[clean_G])
    return losses, gradients, weight_CD.detach().numpy(), np.concatenate(seen), count_C, sum_CD


@pytest.mark.parametrize(
    ("name", "robust", "num_ranks", "parts"),
    [
        *(("kappaface", "both", num_ranks, 1) for num_ranks in (0, 1, 3)),
        ("kappaface", "statistics", 2, 1),
        ("kappaface", "loss", 2, 3),
        ("magface", "loss", 2, 1),  # a penalty on the norm, and gradients through it
        ("adaface", "loss", 3, 1),
        ("curricularface", "loss", 2, 1),  # changes the negatives too
    ],
)
def test_an_image_counts_by_the_trust_in_its_label(name, robust, num_ranks, parts):
    results = run_on_ranks(num_ranks, train, name, robust, parts)
    margin_C = torch.from_numpy(np.concatenate([state["margin"] for _, _, state, _ in results]))
    losses, gradients, weight, seen, count_C, sum_CD = densely(
        MARGINS[name], margin_C.double(), in_loss=robust != "statistics"
    )
    weights = posterior(seen)
    assert weights.min() < 0.1
    assert weights.max() > 0.9
    for own_losses, _, _, histogram in results:
        np.testing.assert_allclose(own_losses, losses, **EXACT)
        expected = np.histogram(seen, NUM_BINS, (-1.0, 1.0))[0]
        assert np.abs(np.array(histogram) - expected).sum() <= 2  # on the edge of a bin
    for step in range(NUM_STEPS):
        ours = np.concatenate([own[step] for _, own, _, _ in results])
        np.testing.assert_allclose(ours, gradients[step], **EXACT)
    ours = np.concatenate([state["weight"] for _, _, state, _ in results])
    np.testing.assert_allclose(ours, weight, **EXACT)
    if name != "kappaface":
        return
    counted = [state["statistics.weight"] for _, _, state, _ in results]
    labels = np.concatenate([global_batch(step)[1] for step in range(NUM_STEPS)])
    whole = np.bincount(labels, minlength=NUM_CLASSES)
    if robust == "loss":
        np.testing.assert_array_equal(np.concatenate(counted), whole)
        return
    np.testing.assert_array_equal(np.concatenate(counted), count_C)
    assert count_C.sum() < whole.sum()
    total = np.concatenate([state["statistics.sum"] for _, _, state, _ in results])
    np.testing.assert_allclose(total, sum_CD, rtol=1e-4, atol=1e-5)  # kept in fp32


def with_a_dirty_image_of_the_next_epoch():
    """What the statistics hold after an epoch's end within a step."""
    head = build(KappaFace(), "statistics")
    embedding_GD, label_G = global_batch(0)
    later_G = torch.arange(NUM_IMAGES) % 2
    head(own_images(embedding_GD).clone().requires_grad_(), own_images(label_G), own_images(later_G)
         ).backward()  # fmt: skip
    head.step(LR)
    head.end_epoch()
    return head.class_margins.statistics.weight_K.numpy().copy()


def test_a_dirty_image_does_not_count_in_the_next_epoch_either():
    found = np.concatenate(run_on_ranks(2, with_a_dirty_image_of_the_next_epoch))
    embedding_GD, label_G = global_batch(0)
    weight_CD = initial_centres(range(NUM_CLASSES), SIZE, SEED, torch.float64, torch.device("cpu"))
    cosine_G = F.cosine_similarity(embedding_GD, weight_CD[label_G]).numpy()
    clean = (posterior(cosine_G).numpy() >= 0.5) & (np.arange(NUM_IMAGES) % 2 == 1)
    expected = np.bincount(label_G[clean], minlength=NUM_CLASSES)
    np.testing.assert_array_equal(found, expected)


def collectives():
    heads = Heads({n: build(KappaFace(), "both") for n in "ab"}, [6, 6], [1.0, 1.0])
    embedding_GD, label_G = global_batch(0)
    dist.barrier()
    with torch.profiler.profile() as profile:
        heads(own_images(embedding_GD).clone().requires_grad_(), own_images(label_G)).backward()
        heads.step(LR)
    return sum(event.count for event in profile.key_averages() if "gloo:" in event.key)


def test_trust_costs_no_collective():
    assert run_on_ranks(2, collectives) == [3, 3]
