"""Templates from images, against plain loops."""

from itertools import product

import numpy as np
import pytest

from kappaface_dist.evaluation.templates.pooling import Pooling, pool_templates


@pytest.mark.parametrize("options", list(product([False, True], repeat=3)))
def test_pooling_is_that_of_the_loops(options):
    pooling = Pooling(*options)
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(60, 8)).astype(np.float32) * rng.uniform(1, 9, (60, 1))
    embedding = embedding.astype(np.float32)
    template, media = rng.integers(5, 12, 60), rng.integers(0, 4, 60)
    score = rng.uniform(0.1, 1, 60).astype(np.float32)
    parts = [(first, embedding[first : first + 17]) for first in range(0, 60, 17)]
    numbers, found = pool_templates(parts, template, media, score, pooling)
    assert numbers.tolist() == sorted(set(template.tolist()))
    for number, row in zip(numbers, found, strict=True):
        total = np.zeros(8)
        for medium in range(4):
            members = []
            for i in np.flatnonzero((template == number) & (media == medium)):
                vector = embedding[i].astype(np.float64)
                if not pooling.use_norm:
                    vector = vector / np.linalg.norm(vector)
                if pooling.use_detector_score:
                    vector = vector * score[i]
                members.append(vector)
            if members:
                total += np.mean(members, axis=0) if pooling.average_media else np.sum(members, 0)
        np.testing.assert_allclose(row, total / np.linalg.norm(total), atol=2e-6)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_image_without_direction_is_named(value):
    embedding = np.ones((4, 3), dtype=np.float32)
    embedding[2] = value
    with pytest.raises(ValueError, match="embedding of image 12 has the length"):
        pool_templates(
            [(10, embedding)], np.zeros(14, int), np.zeros(14, int), np.ones(14), Pooling()
        )
