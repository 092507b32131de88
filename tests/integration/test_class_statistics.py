"""A training on people most of whom have one photo: the margins, from what the head was shown."""

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.data.loading.sampler import Shuffle
from kappaface_dist.data.sources.recordio_writer import RecordWriter
from kappaface_dist.made_up_faces.dataset import face_jpeg
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import build_job
from kappaface_dist.training.metrics_file import read_metrics
from kappaface_dist.training.trainer import Trainer
from tests.processes import run_on_ranks

# 70 % with one photo, as in LFW.
COUNTS = np.array([1] * 42 + [2] * 7 + [3] * 4 + [4, 5, 6, 8, 9, 11, 13])
CLASS_I = np.repeat(np.arange(len(COUNTS)), COUNTS)
# Damaged photos: of a person with one, of one with two, of the largest.
DAMAGED = [3, 43, len(CLASS_I) - 2]
BATCH, EPOCHS = 12, 3


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    with RecordWriter(folder / "train") as writer:
        for number, identity in enumerate(CLASS_I.tolist()):
            payload = face_jpeg((5, identity, number, 32))
            writer.write(identity, payload[: len(payload) // 2] if number in DAMAGED else payload)
    return folder / "train.rec"


def shown(path, *overrides):
    """Train; (embeddings and labels that this rank's statistics were shown, its rows, how often).

    A momentum encoder is followed on the way, by an average of our own.
    """
    config = load_config(path, list(overrides))
    if parallel.rank() == 0:
        config.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(build_job(config, torch.device("cpu")))
    seen = []

    def note(_, arguments):
        embedding_BD, label_B, *_ = arguments
        if embedding_BD.requires_grad:
            seen.append((embedding_BD.detach().double().numpy().copy(), label_B.numpy().copy()))

    encoder = trainer.job.encoder
    if encoder is None:
        trainer.job.head.register_forward_pre_hook(note)
    else:
        watch_encoder(trainer.job, seen)
    trainer.fit()
    rows = {k: v.numpy().copy() for k, v in trainer.job.head.sharded_state().items()}
    return seen, rows, trainer.job.head.counters()["num_refreshes"]


def watch_encoder(job, seen):
    """Note what the encoder makes of each batch, and that it is the average that it should be."""
    average = [p.detach().double().clone() for p in job.network.parameters()]
    labels = []
    job.head.register_forward_pre_hook(lambda _, given: labels.append(given[1].numpy().copy()))

    def note(encoder, _, embedding_BD):
        if (len(seen) % job.config.optimizer.accumulate) == 0:
            for mine, p in zip(average, job.network.parameters(), strict=True):
                mine.mul_(0.9).add_(0.1 * p.detach().double())
        for mine, theirs in zip(average, encoder.parameters(), strict=True):
            np.testing.assert_allclose(theirs.numpy(), mine.numpy(), rtol=1e-4, atol=1e-6)
        assert not encoder.training
        for name, buffer in encoder.named_buffers():
            assert (buffer == float(name.endswith("running_var"))).all(), name
        seen.append((embedding_BD.double().numpy().copy(), labels[len(seen)]))

    job.encoder.register_forward_hook(note)


def expected(embedding, label, margin=0.8, temperature=0.4, share=0.7):
    """KappaFace from the images of one epoch, in float64: (κ, margins)."""
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    size = unit.shape[1]
    kappa = np.full(len(COUNTS), np.nan)
    for c in range(len(COUNTS)):
        mine = unit[label == c]
        if len(mine) >= 2:
            cosine = (mine @ mine.T)[~np.eye(len(mine), dtype=bool)]
            squared = cosine.mean().clip(0, 0.995**2)
            kappa[c] = squared**0.5 * (size - squared) / (1 - squared)
    z = np.nan_to_num((kappa - np.nanmean(kappa)) / np.nanstd(kappa))
    rare = (1 + np.cos(np.pi * COUNTS / COUNTS.max())) / 2
    return kappa, margin * (share / (1 + np.exp(temperature * z)) + (1 - share) * rare)


@pytest.mark.parametrize(
    ("num_ranks", "accumulate", "source"), [(1, 1, "batch"), (2, 2, "batch"), (2, 2, "encoder")]
)
def test_no_single_is_measured_and_margins_are_those_of_the_epochs_photos(
    people, write_config, tmp_path, num_ranks, accumulate, source
):
    path = write_config(
        run={"steps": None, "epochs": EPOCHS + 0.5},
        data={"train": str(people), "batch_size": BATCH, "max_corrupt_share": 0.2},
        optimizer={"accumulate": accumulate},
        margin={"source": source},
    )
    results = run_on_ranks(num_ranks, shown, path)
    seen = [result[0] for result in results]
    embedding, label = (
        np.concatenate([part[i] for parts in zip(*seen, strict=True) for part in parts])
        for i in (0, 1)
    )
    num_images = len(CLASS_I)
    assert num_images % (BATCH * num_ranks) != 0  # a step is in two epochs
    last = np.arange((EPOCHS - 1) * num_images, EPOCHS * num_images)
    index = Shuffle(num_images, 0).indices(int(last[0]), num_images)
    assert sorted(index.tolist()) == list(range(num_images))
    readable = ~np.isin(index, DAMAGED)
    assert (label[last][readable] == CLASS_I[index][readable]).all()
    kappa, margins = expected(embedding[last][readable], label[last][readable])

    rows = {n: np.concatenate([r[1][n] for r in results]) for n in results[0][1]}
    assert results[0][2] == EPOCHS
    np.testing.assert_allclose(rows["statistics.kappa"], kappa, rtol=1e-4)
    np.testing.assert_allclose(rows["margin"], margins, rtol=1e-4)
    measured = np.isfinite(kappa)
    assert not measured[COUNTS == 1].any()
    # Of the person with two photos one can be read.
    assert measured.sum() == (COUNTS > 1).sum() - 1

    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    line = [line for line in lines if "margin_std" in line][-1]
    assert line["margin_std"] == pytest.approx(margins[measured].std(), rel=1e-4)
    assert line["concentration_std"] == pytest.approx(kappa[measured].std(), rel=1e-4)
    assert line["neutral_share"] == pytest.approx(1 - measured.mean())
    assert margins[measured].std() > 0.01


def trained(path, *overrides):
    """Train to the end; what is remembered besides classes: all images' embeddings, the encoder."""
    config = load_config(path, list(overrides))
    if parallel.rank() == 0:
        config.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(build_job(config, torch.device("cpu")))
    start = remembered(trainer.job)
    trainer.fit()
    return start, remembered(trainer.job)


def remembered(job):
    memory, encoder = job.head.class_margins.memory, job.encoder
    if memory is not None:
        return memory.row_JD.float().numpy().copy()
    return np.concatenate([p.detach().numpy().ravel() for p in encoder.parameters()])


@pytest.mark.long
@pytest.mark.parametrize("source", ["memory", "encoder"])
def test_what_is_remembered_is_in_the_checkpoint_of_any_ranks(people, write_config, source):
    """Two ranks stop in mid-epoch, three go on, and one: each begins with what was there."""
    path = write_config(
        run={"steps": 9},
        data={"train": str(people), "batch_size": BATCH, "max_corrupt_share": 0.2},
        margin={"source": source},
    )
    joined = np.concatenate if source == "memory" else (lambda parts: parts[0])
    before = run_on_ranks(2, trained, path)
    left = joined([end for _, end in before])
    # An encoder is the same on every rank: once is enough.
    for num_ranks, steps in ((3, 10), (1, 11))[: 2 if source == "memory" else 1]:
        after = run_on_ranks(num_ranks, trained, path, f"run.steps={steps}")
        start = joined([start for start, _ in after])
        np.testing.assert_array_equal(start, left)
        left = joined([end for _, end in after])
        assert (left != start).any()
    if source == "memory":
        assert left.shape == (len(CLASS_I), 32)
        length = np.linalg.norm(left, axis=1)
        # In nine steps of 24, one of 36 and one of 12 the 140 or so images were all seen.
        assert (length[DAMAGED] == 0).all()
        np.testing.assert_allclose(np.delete(length, DAMAGED), 1.0, rtol=5e-3)
