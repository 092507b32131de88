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
    """Train; (embeddings and labels that this rank's head was shown, its rows, how often)."""
    config = load_config(path, list(overrides))
    if parallel.rank() == 0:
        config.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(build_job(config, torch.device("cpu")))
    seen = []

    def note(_, arguments):
        embedding_BD, label_B, *_ = arguments
        if embedding_BD.requires_grad:
            seen.append((embedding_BD.detach().double().numpy().copy(), label_B.numpy().copy()))

    trainer.job.head.register_forward_pre_hook(note)
    trainer.fit()
    rows = {k: v.numpy().copy() for k, v in trainer.job.head.sharded_state().items()}
    return seen, rows, trainer.job.head.counters()["num_refreshes"]


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


@pytest.mark.parametrize(("num_ranks", "accumulate"), [(1, 1), (2, 2)])
def test_no_single_is_measured_and_margins_are_those_of_the_epochs_photos(
    people, write_config, tmp_path, num_ranks, accumulate
):
    path = write_config(
        run={"steps": None, "epochs": EPOCHS + 0.5},
        data={"train": str(people), "batch_size": BATCH, "max_corrupt_share": 0.2},
        optimizer={"accumulate": accumulate},
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
