"""Training accuracy from the head's own pass, against an argmax over all classes in one place."""

from itertools import chain

import pytest
import torch
import torch.nn.functional as F

from kappaface_dist.head import ArcFace, KappaFace, PartialFC
from kappaface_dist.head.shard import initial_centres
from kappaface_dist.parallel import ranks as parallel
from tests.processes import run_on_ranks

NUM_CLASSES, SIZE, NUM_IMAGES = 401, 16, 24


def batch(step):
    """Images around their centres, some of them nearer to another's."""
    generator = torch.Generator().manual_seed(step)
    centres_CD = initial_centres(range(NUM_CLASSES), SIZE, 3, torch.float64, torch.device("cpu"))
    label_G = torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator)
    noise_GD = torch.randn(NUM_IMAGES, SIZE, dtype=torch.float64, generator=generator)
    embedding_GD = F.normalize(centres_CD[label_G]) + 0.3 * noise_GD
    return centres_CD, embedding_GD, label_G


def measure(margin, options):
    head = PartialFC(NUM_CLASSES, SIZE, margin, dtype=torch.float64, seed=3, **options)
    found, kept = [], []
    for step in range(3):
        _, embedding_GD, label_G = batch(step)
        if step > 0:
            head.rank_one.start()
        for part in (slice(0, 12), slice(12, 24)):  # two micro-batches
            embedding_BD = embedding_GD[part].chunk(parallel.world_size())[parallel.rank()]
            label_B = label_G[part].chunk(parallel.world_size())[parallel.rank()]
            head(embedding_BD.clone().requires_grad_(), label_B).backward()
            index_S = head.micro_batches.pending[-1].rows.index_S
            here = torch.arange(len(head.classes)) if index_S is None else index_S
            kept.append((here + head.classes.start).tolist())
        found.append(head.rank_one.take())
        head.discard()
    return found, kept


def dense_share(step, kept):
    centres_CD, embedding_GD, label_G = batch(step)
    cosine_GC = F.normalize(embedding_GD) @ F.normalize(centres_CD).T
    right = 0
    for image in range(NUM_IMAGES):
        classes = kept[2 * step + image // 12]
        right += classes[int(cosine_GC[image, classes].argmax())] == int(label_G[image])
    return right / NUM_IMAGES


@pytest.mark.parametrize("num_ranks", [0, 1, 3])
@pytest.mark.parametrize(
    ("margin", "options"),
    [
        (ArcFace(margin=0.5), {"chunk_bytes": 1}),  # two chunks of rows or more
        (KappaFace(), {}),
        # What the loss leaves out still counts as nearer.
        (ArcFace(margin=0.5), {"filter_threshold": 0.3}),
        (ArcFace(margin=0.5), {"sample_rate": 0.4}),
    ],
    ids=["arcface", "kappaface", "filtered", "sampled"],
)
def test_rank_one_is_the_argmax(num_ranks, margin, options):
    results = run_on_ranks(num_ranks, measure, margin, options)
    kept = [sorted(chain(*parts)) for parts in zip(*(kept for _, kept in results), strict=True)]
    expected = [dense_share(step, kept) for step in range(3)]
    assert 0.1 < min(expected) < max(expected) < 1.0
    for found, _ in results:
        assert found == [None, pytest.approx(expected[1]), pytest.approx(expected[2])]
