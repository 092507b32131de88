"""PartialFC on real process groups, against one dense class matrix in float64."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from kappaface_dist.head import AdamWRows, ArcFace, CosFace, KappaFace, PartialFC, SGDRows
from kappaface_dist.head.checks import BatchEvidence
from kappaface_dist.head.shard import initial_centres, shard_classes
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.planning.dense_head import DenseSide
from tests.dense_head import dense_loss, torch_optimizer
from tests.head_steps import own_images, take_steps
from tests.processes import run_on_ranks

NUM_CLASSES, SIZE, NUM_IMAGES, NUM_STEPS = 101, 16, 12, 5
LR = 0.01
# Float64 sums in another order; five steps at scale 64 amplify the roundings by some 1e4.
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def global_batch(step, num_classes=NUM_CLASSES, num_images=NUM_IMAGES):
    generator = torch.Generator().manual_seed(100 + step)
    embedding_GD = torch.randn(num_images, SIZE, dtype=torch.float64, generator=generator)
    label_G = torch.randint(num_classes, (num_images,), generator=generator)
    label_G[1] = label_G[0]  # the same class twice in a batch
    return embedding_GD, label_G


def train(num_classes, margin, optimizer, sample_rate, num_steps=NUM_STEPS):
    """Run the sharded head; returns everything the oracle needs to repeat it."""
    head = PartialFC(
        num_classes,
        SIZE,
        margin,
        images_per_class=np.arange(1, num_classes + 1),
        sample_rate=sample_rate,
        optimizer=optimizer,
        dtype=torch.float64,
        seed=3,
    )
    batches = (global_batch(step, num_classes) for step in range(num_steps))
    losses, gradients, kept = take_steps(head, batches, LR)
    state = {name: t.numpy() for name, t in head.sharded_state().items()}
    return losses, gradients, kept, state


def repeat_densely(num_classes, optimizer, margin_C, scale, kept, kind, num_steps=NUM_STEPS):
    weight_CD = initial_centres(
        range(num_classes), SIZE, 3, torch.float64, torch.device("cpu")
    ).requires_grad_()
    dense = torch_optimizer(optimizer, weight_CD)
    for group in dense.param_groups:
        group["lr"] = LR
    losses, gradients = [], []
    for step in range(num_steps):
        embedding_GD, label_G = global_batch(step, num_classes)
        embedding_GD.requires_grad_()
        kept_C = torch.zeros(num_classes, dtype=torch.bool)
        kept_C[[c for part in kept for c in part[step]]] = True
        loss = dense_loss(embedding_GD, weight_CD, label_G, margin_C, scale, kept_C, kind)
        dense.zero_grad()
        loss.backward()
        before = weight_CD.detach().clone()
        states = {
            k: v.clone()
            for k, v in dense.state.get(weight_CD, {}).items()
            if isinstance(v, torch.Tensor) and v.shape == before.shape
        }
        dense.step()
        # The rule for rows that were not sampled: neither they nor their state change.
        with torch.no_grad():
            weight_CD[~kept_C] = before[~kept_C]
            for name, tensor in dense.state[weight_CD].items():
                if isinstance(tensor, torch.Tensor) and tensor.shape == before.shape:
                    tensor[~kept_C] = states[name][~kept_C] if name in states else 0.0
        losses.append(loss.item())
        gradients.append(embedding_GD.grad.numpy())
    return losses, gradients, weight_CD.detach().numpy(), dense.state[weight_CD]


def joined(results, name):
    return np.concatenate([state[name] for *_, state in results])


@pytest.mark.parametrize("num_ranks", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(
    ("margin", "kind"), [(ArcFace(), "angular"), (CosFace(), "cosine"), (KappaFace(), "angular")]
)
@pytest.mark.parametrize("sample_rate", [1.0, 0.2])
def test_equals_a_dense_head_after_five_steps(num_ranks, margin, kind, sample_rate):
    results = run_on_ranks(num_ranks, train, NUM_CLASSES, margin, SGDRows(), sample_rate)
    margin_C = torch.from_numpy(joined(results, "margin")).double()
    kept = [kept for _, _, kept, _ in results]
    losses, gradients, weight, state = repeat_densely(
        NUM_CLASSES, SGDRows(), margin_C, margin.scale, kept, kind
    )
    for own_losses, *_ in results:
        np.testing.assert_allclose(own_losses, losses, **EXACT)
    for step in range(NUM_STEPS):
        ours = np.concatenate([own[step] for _, own, *_ in results])
        np.testing.assert_allclose(ours, gradients[step], **EXACT)
    np.testing.assert_allclose(joined(results, "weight"), weight, **EXACT)
    np.testing.assert_allclose(
        joined(results, "optimizer.momentum"), state["momentum_buffer"].numpy(), **EXACT
    )
    if sample_rate < 1:
        assert len(set(kept[0][0])) < len(shard_classes(NUM_CLASSES, 0, max(num_ranks, 1)))


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_adamw_rows(num_ranks):
    optimizer = AdamWRows(weight_decay=0.05)
    results = run_on_ranks(num_ranks, train, NUM_CLASSES, ArcFace(), optimizer, 1.0)
    margin_C = torch.full((NUM_CLASSES,), 0.5, dtype=torch.float64)
    losses, _, weight, state = repeat_densely(
        NUM_CLASSES, optimizer, margin_C, 64.0, [kept for _, _, kept, _ in results], "angular"
    )
    np.testing.assert_allclose(results[0][0], losses, **EXACT)
    np.testing.assert_allclose(joined(results, "weight"), weight, **EXACT)
    np.testing.assert_allclose(joined(results, "optimizer.square"), state["exp_avg_sq"], **EXACT)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_ranks_that_own_nothing(num_classes):
    """5 classes on 4 ranks: 2, 2, 1, 0."""
    results = run_on_ranks(4, train, num_classes, ArcFace(), SGDRows(), 1.0)
    margin_C = torch.full((num_classes,), 0.5, dtype=torch.float64)
    losses, gradients, weight, _ = repeat_densely(
        num_classes, SGDRows(), margin_C, 64.0, [kept for _, _, kept, _ in results], "angular"
    )
    np.testing.assert_allclose(results[3][0], losses, **EXACT)
    np.testing.assert_allclose(results[3][1][2], gradients[2][9:], **EXACT)
    np.testing.assert_allclose(joined(results, "weight"), weight, **EXACT)
    assert len(results[3][3]["weight"]) == 0


def one_sided(num_classes):
    """All labels in the first shard, most of them the same class."""
    head = PartialFC(num_classes, SIZE, ArcFace(), dtype=torch.float64, seed=3)
    embedding_GD, _ = global_batch(0)
    label_G = torch.tensor([7] * 9 + [8, 9, 9])
    embedding_BD = own_images(embedding_GD).clone().requires_grad_()
    loss = head(embedding_BD, own_images(label_G))
    loss.backward()
    gradient = embedding_BD.grad / parallel.world_size()
    return loss.item(), gradient.numpy(), head.weight_gradient().numpy()


def test_all_labels_in_one_shard():
    results = run_on_ranks(3, one_sided, NUM_CLASSES)
    start_CD = initial_centres(range(NUM_CLASSES), SIZE, 3, torch.float64, torch.device("cpu"))
    embedding_GD = global_batch(0)[0].requires_grad_()
    margin_C = torch.full((NUM_CLASSES,), 0.5, dtype=torch.float64)
    label_G = torch.tensor([7] * 9 + [8, 9, 9])
    loss = dense_loss(embedding_GD, start_CD.requires_grad_(), label_G, margin_C, 64.0)
    loss.backward()
    assert all(abs(own - loss.item()) < 1e-9 for own, *_ in results)
    np.testing.assert_allclose(
        np.concatenate([own for _, own, _ in results]), embedding_GD.grad.numpy(), **EXACT
    )
    np.testing.assert_allclose(
        np.concatenate([own for *_, own in results]), start_CD.grad.numpy(), **EXACT
    )


def both_sides():
    """(loss, gradient of embeddings, of centres) of PartialFC and of the benchmark's dense head."""
    embedding_GD, label_G = global_batch(0)
    results = []
    for head in (
        PartialFC(NUM_CLASSES, SIZE, ArcFace()),
        DenseSide(NUM_CLASSES, SIZE, torch.float32, torch.device("cpu")),
    ):
        embedding_BD = own_images(embedding_GD).float().requires_grad_()
        loss = head(embedding_BD, own_images(label_G))
        loss.backward()
        dense = isinstance(head, DenseSide)
        # DDP's convention, which the dense head leaves to DDP.
        factor = 1 if dense else 1 / parallel.world_size()
        weight_gradient = head.weight_KD.grad if dense else head.weight_gradient()
        results.append((loss.item(), (embedding_BD.grad * factor).numpy(), weight_gradient.numpy()))
    return results


@pytest.mark.parametrize("num_ranks", [0, 2, 3])
def test_the_dense_head_of_the_benchmark_computes_the_same(num_ranks):
    for ours, dense in run_on_ranks(num_ranks, both_sides):
        for own, expected in zip(ours, dense, strict=True):
            np.testing.assert_allclose(own, expected, rtol=2e-3, atol=2e-5)


def count_collectives():
    """Collectives that reach the backend in one step, seen by torch's profiler."""
    head = PartialFC(NUM_CLASSES, SIZE, KappaFace(), sample_rate=0.5)
    embedding_GD, label_G = global_batch(0)
    embedding_BD = own_images(embedding_GD).float().requires_grad_()
    dist.barrier()
    with torch.profiler.profile() as profile:
        head(embedding_BD, own_images(label_G)).backward()
        head.step(LR)
    return sorted(e.key for e in profile.key_averages() for _ in range(e.count) if "gloo:" in e.key)


def test_a_step_costs_exactly_three_collectives():
    for names in run_on_ranks(2, count_collectives):
        assert len(names) == 3, names


def two_ways_to_one_batch():
    """One batch of 12, and the same in three micro-batches of 4."""
    weights = []
    for parts in (1, 3):
        head = PartialFC(NUM_CLASSES, SIZE, ArcFace(), dtype=torch.float64)
        embedding_GD, label_G = global_batch(0)
        embedding_BD, label_B = own_images(embedding_GD), own_images(label_G)
        for micro_BD, micro_B in zip(embedding_BD.chunk(parts), label_B.chunk(parts), strict=True):
            (head(micro_BD.clone().requires_grad_(), micro_B) / parts).backward()
        head.step(LR)
        weights.append(head.weight_KD.numpy().copy())
    return weights


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_micro_batches_add_up_to_the_large_batch(num_ranks):
    for one, three in run_on_ranks(num_ranks, two_ways_to_one_batch):
        np.testing.assert_allclose(three, one, **EXACT)


def bad_label(label):
    head = PartialFC(NUM_CLASSES, SIZE, ArcFace())
    label_B = torch.zeros(4, dtype=torch.int64)
    if parallel.rank() == 1:
        label_B[2] = label
    try:
        head(torch.randn(4, SIZE, requires_grad=True), label_B)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("label", [101, -1])
def test_a_label_out_of_range_is_an_error_on_every_rank(label):
    messages = run_on_ranks(3, bad_label, label)
    expected = f"image 2 of the batch of rank 1 has label {label}, but the head has 101 classes"
    assert all(message.startswith(expected) for message in messages)


def non_finite():
    head = PartialFC(NUM_CLASSES, SIZE, KappaFace())
    embedding_BD = torch.randn(4, SIZE)
    if parallel.rank() == 1:
        embedding_BD[3, 0] = torch.nan
    loss = head(embedding_BD.requires_grad_(), torch.arange(4))
    finite_sums = bool(head.class_margins.statistics.sum_KX.isfinite().all())
    return loss.item(), head.batch_evidence().tolist(), finite_sums


def test_a_non_finite_embedding_is_named_and_not_spread():
    for loss, evidence, finite_sums in run_on_ranks(2, non_finite):
        assert np.isnan(loss)
        assert BatchEvidence(*evidence) == BatchEvidence(
            label_place=-1, label=0, embedding_place=7, num_images=8
        )
        assert finite_sums
