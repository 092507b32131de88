"""Several heads on real process groups, against one dense class matrix each, in float64."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from kappaface_dist.head import (
    AdaFace,
    ArcFace,
    CosFace,
    CurricularFace,
    Heads,
    KappaFace,
    PartialFC,
    SGDRows,
)
from kappaface_dist.head.encoded import see_encoded
from kappaface_dist.head.shard import initial_centres
from kappaface_dist.head.softmax.gathered import join_images, split_images
from kappaface_dist.parallel import ranks as parallel
from tests.dense_head import dense_loss, torch_optimizer
from tests.head_steps import own_images
from tests.processes import run_on_ranks

SIZE, NUM_STEPS, LR = 16, 4, 0.01
CLASSES, IMAGES, WEIGHTS = (101, 3, 46), (24, 12, 36), (1.0, 0.5, 2.0)
MARGINS = (KappaFace(), CosFace(scale=30.0), ArcFace(scale=100.0))  # the last has peaks of its own
SCALES = [margin.scale for margin in MARGINS]
# Float64 sums in another order; four steps at scales up to 100.
EXACT = {"rtol": 1e-8, "atol": 1e-11}


def images_of(step):
    """Of each dataset on all ranks: (embeddings, labels)."""
    generator = torch.Generator().manual_seed(step)
    return [
        (
            torch.randn(num_images, SIZE, dtype=torch.float64, generator=generator),
            torch.randint(num_classes, (num_images,), generator=generator),
        )
        for num_classes, num_images in zip(CLASSES, IMAGES, strict=True)
    ]


def build(margins, sample_rates, **options):
    heads = {
        f"set_{number}": PartialFC(
            num_classes,
            SIZE,
            margins[number],
            images_per_class=np.arange(1, num_classes + 1),
            sample_rate=sample_rates[number],
            optimizer=SGDRows(),
            seed=number,
            **options,
        )
        for number, num_classes in enumerate(CLASSES)
    }
    counts = [num_images // parallel.world_size() for num_images in IMAGES]
    return Heads(heads, counts, WEIGHTS)


def train(margins, sample_rates, parts=1):
    """Losses, embedding gradients and rows in use of each step; what the heads hold at the end."""
    heads = build(margins, sample_rates, dtype=torch.float64)
    heads.counts = tuple(count // parts for count in heads.counts)
    found = []
    for step in range(NUM_STEPS):
        pairs = [[x.chunk(parts) for x in map(own_images, pair)] for pair in images_of(step)]
        joined = [
            [join_images([pair[i][part] for pair in pairs], heads.counts) for i in (0, 1)]
            for part in range(parts)
        ]
        if parts > 1:
            heads.announce(torch.cat([label_B for _, label_B in joined]))
        gradients, losses = [], []
        for embedding_BD, label_B in joined:
            embedding_BD = embedding_BD.clone().requires_grad_()
            loss = heads(embedding_BD, label_B)
            (loss / parts).backward()
            losses.append(loss.item())
            gradient_BD = embedding_BD.grad / parallel.world_size()
            gradients.append([g.numpy() for g in split_images(gradient_BD, heads.counts)])
        kept = []
        for head in heads.by_name.values():
            index_S = head.micro_batches.pending[0].rows.index_S
            here = torch.arange(len(head.classes)) if index_S is None else index_S
            kept.append((here + head.classes.start).tolist())
        heads.step(LR)
        own = [loss.item() for loss in heads.losses]
        each = [np.concatenate(parts) for parts in zip(*gradients, strict=True)]
        found.append((np.mean(losses), own, each, kept))
    state = [
        {name: tensor.numpy() for name, tensor in head.sharded_state().items()}
        for head in heads.by_name.values()
    ]
    return found, state


def repeat_densely(results, margins):
    """The same with a class matrix, a loss and an optimizer for each dataset, and nothing shared
    but the sum; raises where it differs.
    """
    share = [weight * n / sum(IMAGES) for weight, n in zip(WEIGHTS, IMAGES, strict=True)]
    totals = np.zeros(NUM_STEPS)
    for number, num_classes in enumerate(CLASSES):
        weight_CD = initial_centres(
            range(num_classes), SIZE, number, torch.float64, torch.device("cpu")
        ).requires_grad_()
        optimizer = torch_optimizer(SGDRows(), weight_CD)
        optimizer.param_groups[0]["lr"] = LR
        margin_C = [state[number]["margin"] for _, state in results]
        margin_C = torch.from_numpy(np.concatenate(margin_C)).double()
        kind = "cosine" if isinstance(margins[number], CosFace) else "angular"
        momentum_CD = torch.zeros_like(weight_CD)
        for step in range(NUM_STEPS):
            embedding_GD, label_G = images_of(step)[number]
            embedding_GD.requires_grad_()
            kept_C = torch.zeros(num_classes, dtype=torch.bool)
            kept_C[[c for found, _ in results for c in found[step][3][number]]] = True
            loss = dense_loss(
                embedding_GD, weight_CD, label_G, margin_C, margins[number].scale, kept_C, kind
            )
            optimizer.zero_grad()
            (share[number] * loss).backward()
            before = weight_CD.detach().clone()
            optimizer.step()
            with torch.no_grad():  # rows that were not sampled stay, and their momentum
                buffer_CD = optimizer.state[weight_CD]["momentum_buffer"]
                weight_CD[~kept_C], buffer_CD[~kept_C] = before[~kept_C], momentum_CD[~kept_C]
                momentum_CD = buffer_CD.clone()
            totals[step] += share[number] * loss.item()
            for found, _ in results:
                np.testing.assert_allclose(found[step][1][number], loss.item(), **EXACT)
            ours = np.concatenate([found[step][2][number] for found, _ in results])
            np.testing.assert_allclose(ours, embedding_GD.grad.numpy(), **EXACT)
        weight = np.concatenate([state[number]["weight"] for _, state in results])
        np.testing.assert_allclose(weight, weight_CD.detach().numpy(), **EXACT)
    for found, _ in results:
        np.testing.assert_allclose([step[0] for step in found], totals, **EXACT)


@pytest.mark.parametrize("num_ranks", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("sample_rates", [(1.0, 1.0, 1.0), (0.2, 1.0, 0.1)])
def test_equals_independent_dense_heads(num_ranks, sample_rates):
    """On four ranks one owns no class of the second head."""
    results = run_on_ranks(num_ranks, train, MARGINS, sample_rates)
    repeat_densely(results, MARGINS)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_micro_batches_of_several_datasets_are_the_large_batch(num_ranks):
    results = run_on_ranks(num_ranks, train, MARGINS, (0.2, 1.0, 0.5), 3)
    repeat_densely(results, MARGINS)


def with_norms_and_cosines():
    """(jointly, each head alone): embedding gradients and centres after a step."""
    margins = (AdaFace(), CurricularFace(), ArcFace())
    heads = build(margins, (1.0, 1.0, 1.0), dtype=torch.float64)
    alone = build(margins, (1.0, 1.0, 1.0), dtype=torch.float64)
    pairs = [[own_images(x) for x in pair] for pair in images_of(0)]
    embedding_BD = join_images([e for e, _ in pairs], heads.counts).requires_grad_()
    heads(embedding_BD, join_images([label for _, label in pairs], heads.counts)).backward()
    heads.step(LR)
    found = []
    parts = zip(heads.by_name.values(), alone.by_name.values(), pairs, WEIGHTS, strict=True)
    gradients = split_images(embedding_BD.grad, heads.counts)
    for number, (joint, single, (own_BD, label_B), weight) in enumerate(parts):
        own_BD = own_BD.clone().requires_grad_()
        (single(own_BD, label_B) * (weight * IMAGES[number] / sum(IMAGES))).backward()
        single.step(LR)
        found.append((gradients[number].numpy(), own_BD.grad.numpy()))
        found.append((joint.weight_KD.numpy(), single.weight_KD.numpy()))
        for name, value in single.replicated_state().items():
            found.append((joint.replicated_state()[name].numpy(), value.numpy()))
    return found


@pytest.mark.parametrize("num_ranks", [0, 2])
def test_margins_that_look_at_norms_and_cosines_stay_each_one_s_own(num_ranks):
    for results in run_on_ranks(num_ranks, with_norms_and_cosines):
        assert len(results) == 9  # and AdaFace's two, CurricularFace's one
        for ours, expected in results:
            np.testing.assert_allclose(ours, expected, **EXACT)


def statistics_of(source):
    """(jointly, alone) of the class statistics of a KappaFace between two other heads."""
    margins = (ArcFace(), KappaFace(source=source, estimator="plugin"), KappaFace())
    both = []
    for joint in (True, False):
        heads = build(margins, (1.0, 1.0, 1.0))
        pairs = [[own_images(x) for x in pair] for pair in images_of(0)]
        slots = [torch.arange(len(label)).int() % 1 for _, label in pairs]
        if joint:
            parts = [[pair[0].float() for pair in pairs], [pair[1] for pair in pairs], slots]
            embedding_BD, label_B, slot_B = (join_images(x, heads.counts) for x in parts)
            embedding_BD.requires_grad_()
            heads(embedding_BD, label_B, slot_B=slot_B).backward()
            heads.step(LR)
            see_encoded(heads, embedding_BD.detach(), label_B)
        else:
            for head, (own_BD, label_B), slot_B in zip(
                heads.by_name.values(), pairs, slots, strict=True
            ):
                own_BD = own_BD.float().requires_grad_()
                head(own_BD, label_B, slot_B=slot_B).backward()
                head.step(LR)
                see_encoded(head, own_BD.detach(), label_B)
        for head in heads.by_name.values():
            head.end_epoch()
        states = [head.sharded_state() for head in heads.by_name.values()]
        names = ("margin", "statistics.kappa")
        both.append([state[name].numpy() for state in states[1:] for name in names])
    return both


@pytest.mark.parametrize("source", ["batch", "memory", "encoder"])
def test_the_statistics_of_each_head_are_those_of_its_own_images(source):
    for joint, alone in run_on_ranks(2, statistics_of, source):
        assert np.isfinite(joint[1]).any()
        for ours, expected in zip(joint, alone, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-5)


def beside(same_people):
    """Losses and embedding gradients of each head; the first's people are in the last one too."""
    heads = build(MARGINS, (1.0, 1.0, 1.0), dtype=torch.float64)
    first, _, last = heads.by_name.values()
    if same_people:
        last.weight_KD.copy_(first.weight_KD[: len(last.weight_KD)])
    pairs = [[own_images(x) for x in pair] for pair in images_of(0)]
    embedding_BD, label_B = (join_images([pair[i] for pair in pairs], heads.counts) for i in (0, 1))
    embedding_BD.requires_grad_()
    heads(embedding_BD, label_B).backward()
    gradients = [part.numpy() for part in split_images(embedding_BD.grad, heads.counts)]
    heads.step(LR)
    return [loss.item() for loss in heads.losses], gradients, first.weight_KD.numpy()


def test_who_is_in_another_head_is_no_negative():
    """So there is nothing to be masked: nothing of the first head is another number."""
    for one, other in zip(*(run_on_ranks(2, beside, same) for same in (False, True)), strict=True):
        assert one[0][:2] == other[0][:2]
        assert one[0][2] != other[0][2]
        for ours, expected in ((one[1][0], other[1][0]), (one[2], other[2])):
            np.testing.assert_array_equal(ours, expected)


def count_collectives(margins, sample_rate):
    """Collectives that reach the backend in one step, seen by torch's profiler."""
    heads = build(margins, (sample_rate,) * 3)
    pairs = [[own_images(x) for x in pair] for pair in images_of(0)]
    embedding_BD = join_images([e.float() for e, _ in pairs], heads.counts).requires_grad_()
    label_B = join_images([label for _, label in pairs], heads.counts)
    dist.barrier()
    with torch.profiler.profile() as profile:
        heads.announce(label_B)
        heads(embedding_BD, label_B).backward()
        heads.step(LR)
    return sum(event.count for event in profile.key_averages() if "gloo:" in event.key)


@pytest.mark.parametrize(
    ("margins", "sample_rate", "expected"),
    [
        ((KappaFace(), CosFace(), AdaFace()), 1.0, 3),
        ((KappaFace(), CosFace(), AdaFace()), 0.5, 4),  # and that of announce
        ((CurricularFace(scale=32.0), CurricularFace(scale=32.0), ArcFace()), 1.0, 4),
    ],
)
def test_a_step_costs_the_collectives_of_one_head(margins, sample_rate, expected):
    assert run_on_ranks(2, count_collectives, margins, sample_rate) == [expected] * 2
