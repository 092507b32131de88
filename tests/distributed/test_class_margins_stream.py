"""Per-class margins over a stream of epochs: pair by pair, and on any ranks."""

import functools

import numpy as np
import pytest
import torch

from kappaface_dist.head import KappaFace, PartialFC
from kappaface_dist.head.encoded import see_encoded
from tests.distributed.test_class_margins import NUM_CLASSES, SAME, SIZE, joined, own
from tests.processes import run_on_ranks

# A stream of epochs of 115 images: a step of 48 ends within an epoch, a micro-batch of 12 too.
EPOCH, STEP, NUM_STEPS = 115, 48, 13
STREAM_MARGINS = {
    "epochs": KappaFace(),
    "decayed": KappaFace(decay=0.6, standardise="robust"),
    "windows of a step": KappaFace(refresh_steps=1, decay=0.5, standardise="logarithmic"),
    "windows of five steps": KappaFace(refresh_steps=5),
    "plugin": KappaFace(estimator="plugin", decay=0.6),
    "target_cosine": KappaFace(statistic="target_cosine"),
    "target_cosine decayed": KappaFace(statistic="target_cosine", refresh_steps=4, decay=0.6),
    "memory, windows of five steps": KappaFace(source="memory", refresh_steps=5, decay=0.6),
    "encoder, windows of two steps": KappaFace(source="encoder", refresh_steps=2),
    "released memory": KappaFace(
        source="memory", estimator="released", standardise="released", max_resultant=0.99999
    ),
    "empirical Bayes": KappaFace(estimator="empirical_bayes"),
}
# Their estimates, pair by pair.
BY_PAIRS = [
    name
    for name, margin in STREAM_MARGINS.items()
    if margin.estimator in ("unbiased", "plugin") and margin.shrinkage == 0
]
STREAM_LABELS = (np.random.default_rng(7).random(EPOCH) ** 2 * NUM_CLASSES).astype(int)
STREAM_COUNTS = np.bincount(STREAM_LABELS, minlength=NUM_CLASSES)


def read(position, count):
    """(embeddings, labels, epochs, numbers of the images in their classes) of the stream."""
    return tuple(part[position : position + count] for part in whole_stream())


@functools.cache
def whole_stream():
    """Every 13th image stands in for another: its epoch is -1."""
    place = np.arange(NUM_STEPS * STEP)
    epoch = place // EPOCH
    order = {e: np.random.default_rng([3, e]).permutation(EPOCH) for e in set(epoch.tolist())}
    index = np.array([order[e][p % EPOCH] for e, p in zip(epoch, place, strict=True)])
    replaced = index % 13 == 4
    index = np.where(replaced, (index + 1) % EPOCH, index)
    mean_CD = np.random.default_rng(1).normal(size=(NUM_CLASSES, SIZE))
    label = STREAM_LABELS[index]
    noise = np.stack([np.random.default_rng([2, i]).normal(size=SIZE) for i in index])
    view = np.stack([np.random.default_rng([4, p]).normal(size=SIZE) for p in place])
    vector = mean_CD[label] + (0.3 + label % 5)[:, None] * 0.3 * noise + 0.1 * view
    slot = np.array([(STREAM_LABELS[:i] == STREAM_LABELS[i]).sum() for i in index])
    return vector, label, np.where(replaced, -1, epoch), slot


def stream(margin, sample_rate, accumulate, steps, rows=None, counters=None):
    """As `run`, over the stream in micro-batches."""
    head = PartialFC(
        NUM_CLASSES, SIZE, margin, images_per_class=STREAM_COUNTS, sample_rate=sample_rate
    )
    memory = head.class_margins.memory
    if rows is not None:
        for name, tensor in head.sharded_state().items():
            tensor.copy_(torch.from_numpy(rows[name][head.classes.start : head.classes.stop]))
        head.load_counters(counters)
        if memory is not None:
            here = rows["memory"][memory.rows.start : memory.rows.stop]
            memory.row_JD.copy_(torch.from_numpy(here))
    for step in steps:
        now = step * STEP // EPOCH
        size = STEP // accumulate
        parts = [
            own(torch.from_numpy(read(step * STEP + part * size, size)[1]))
            for part in range(accumulate)
        ]
        head.announce(torch.cat(parts))
        for part in range(accumulate):
            embedding_GD, *others = images_of(step * STEP + part * size, size, now)
            loss = head(own(embedding_GD).requires_grad_(), *map(own, others))
            (loss / accumulate).backward()
        head.step(0.0)
        if margin.source == "encoder":
            see_encoded(head, *map(own, images_of(step * STEP, STEP, now)[:3]))
        for _ in range(now, (step + 1) * STEP // EPOCH):
            head.end_epoch()
    state = {name: t.numpy().copy() for name, t in head.sharded_state().items()}
    if memory is not None:
        assert memory.row_JD.dtype == torch.bfloat16
        state["memory"] = memory.row_JD.float().numpy().copy()
    return state, head.counters()


def images_of(position, count, now):
    """Tensors for the head: embeddings, labels, epochs later than now, numbers in the class."""
    vector, label, epoch, slot = read(position, count)
    later = np.where(epoch < 0, -1, epoch - now)
    found = map(torch.from_numpy, (vector.astype(np.float32), label, later, slot))
    return list(found)


def measured_embeddings(margin):
    """Unit embeddings that the statistics take, in float64; from a memory, in its order."""
    vector, label, epoch, slot = read(0, NUM_STEPS * STEP)
    unit = vector / np.linalg.norm(vector, axis=1, keepdims=True)
    if margin.source == "memory":
        memory = {}
        for place in np.flatnonzero(epoch >= 0):
            key = label[place], slot[place]
            mixed = 0.9 * unit[place] + 0.1 * memory.get(key, 0.0)
            unit[place] = mixed / np.linalg.norm(mixed)
            memory[key] = torch.from_numpy(unit[place]).float().bfloat16().double().numpy()
    return unit


def expected_kappa(margin, centre_CD):
    """In float64, image by image and pair by pair, from the definition."""
    _, label, epoch, _ = read(0, NUM_STEPS * STEP)
    unit = measured_embeddings(margin)
    step = np.arange(len(label)) // STEP
    # What a step reads of a later epoch than its first image's is seen after the step.
    after = epoch > step * STEP // EPOCH
    window, num_windows = np.arange(len(label)) // EPOCH, NUM_STEPS * STEP // EPOCH
    if margin.refresh_steps:
        window = (step + after) // margin.refresh_steps
        num_windows = NUM_STEPS // margin.refresh_steps
    kappa = np.full(NUM_CLASSES, np.nan)
    for end in range(num_windows):
        age = end - window
        weight = np.where((age >= 0) & (epoch >= 0), float(margin.decay) ** np.abs(age), 0.0)
        once = sum(weight[epoch == e].max() for e in set(epoch[epoch >= 0].tolist()))
        for c in np.flatnonzero(STREAM_COUNTS >= 2):
            mine = np.flatnonzero((label == c) & (weight > 0))
            b, e, z = weight[mine], epoch[mine], unit[mine]
            if margin.statistic == "target_cosine":
                if b.sum() <= 1.0001 * once:
                    continue
                centre = centre_CD[c] / np.linalg.norm(centre_CD[c])
                squared = max((b * (z @ centre)).sum() / b.sum(), 0.0) ** 2
            else:
                pairs = np.outer(b, b) * (e[:, None] == e[None, :])
                own_pairs = np.diag(pairs).sum()
                others = pairs - np.diag(np.diag(pairs))
                if len(mine) == 0 or others.sum() < 0.999 * own_pairs:
                    continue
                used = pairs if margin.estimator == "plugin" else others
                squared = (used * (z @ z.T)).sum() / used.sum()
            squared = np.clip(squared, 0.0, margin.max_resultant**2)
            kappa[c] = squared**0.5 * (SIZE - squared) / (1 - squared)
    return kappa


@pytest.mark.parametrize("name", BY_PAIRS)
def test_the_stream_against_pairs_of_photos_in_float64(name):
    state, counters = stream(STREAM_MARGINS[name], 1.0, 1, range(NUM_STEPS))
    expected = expected_kappa(STREAM_MARGINS[name], state["weight"].astype(float))
    np.testing.assert_allclose(state["statistics.kappa"], expected, rtol=2e-5)
    assert np.isfinite(expected).sum() > 15
    assert np.isnan(expected[STREAM_COUNTS < 2]).all()
    assert (STREAM_COUNTS == 1).sum() > 3
    assert counters["num_refreshes"] >= 2


@pytest.fixture(scope="module")
def one_process():
    return {n: stream(m, 1.0, 1, range(NUM_STEPS)) for n, m in STREAM_MARGINS.items()}


def all_margins(sample_rate, accumulate, steps, starts=None):
    """`stream` for every margin, so that one start of processes does for all."""
    return {
        name: stream(margin, sample_rate, accumulate, steps, *(starts[name] if starts else ()))
        for name, margin in STREAM_MARGINS.items()
    }


def joined_margins(results):
    return {name: joined([result[name] for result in results]) for name in STREAM_MARGINS}


@pytest.mark.parametrize(
    ("num_ranks", "sample_rate", "accumulate"),
    [(1, 0.1, 4), (2, 1.0, 4), (3, 0.1, 1), (4, 0.1, 4)],
)
def test_the_stream_on_any_ranks_samples_and_micro_batches(
    one_process, num_ranks, sample_rate, accumulate
):
    results = run_on_ranks(num_ranks, all_margins, sample_rate, accumulate, range(NUM_STEPS))
    for name, ours in joined_margins(results).items():
        expected, counters = one_process[name]
        np.testing.assert_allclose(ours["margin"], expected["margin"], **SAME, err_msg=name)
        assert results[0][name][1]["epoch_weights"] == counters["epoch_weights"]
        assert len(np.unique(expected["margin"])) > 15


@pytest.mark.parametrize(("before", "after", "cut"), [(1, 3, 5), (4, 2, 6)])
def test_the_stream_over_a_restart_on_other_ranks(one_process, before, after, cut):
    """Cut in the middle of an epoch and of most windows, after a step in two epochs and not."""
    first = run_on_ranks(before, all_margins, 1.0, 1, range(cut))
    rows = joined_margins(first)
    starts = {name: (rows[name], first[0][name][1]) for name in STREAM_MARGINS}
    rest = run_on_ranks(after, all_margins, 1.0, 4, range(cut, NUM_STEPS), starts)
    for name, ours in joined_margins(rest).items():
        expected = one_process[name][0]
        np.testing.assert_allclose(ours["margin"], expected["margin"], **SAME, err_msg=name)
