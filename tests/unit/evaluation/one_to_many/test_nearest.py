"""The nearest entries against a sorted matrix of scores."""

import numpy as np
import pytest

from kappaface_dist.evaluation.one_to_many.nearest import nearest_entries


def units(seed, count):
    rows = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("blocks", [(1024, 4096), (5, 7), (1, 1), (64, 3)])
@pytest.mark.parametrize("not_itself", [False, True])
def test_they_are_those_of_the_whole_matrix(blocks, not_itself):
    gallery = units(0, 61)
    query = gallery if not_itself else units(1, 37)
    score = query.astype(np.float64) @ gallery.astype(np.float64).T
    if not_itself:
        np.fill_diagonal(score, -np.inf)
    expected_at = np.argsort(-score, axis=1)[:, :11]
    done = []
    found, at = nearest_entries(
        query, gallery, 11, not_itself=not_itself, progress=done.append,
        query_rows=blocks[0], gallery_rows=blocks[1],
    )  # fmt: skip
    np.testing.assert_array_equal(at, expected_at)
    np.testing.assert_allclose(found, np.take_along_axis(score, expected_at, 1), atol=1e-6)
    assert sum(done) == len(query)


def test_all_entries_can_be_asked_for():
    gallery = units(2, 9)
    _, at = nearest_entries(gallery, gallery, 8, not_itself=True, gallery_rows=4)
    assert [sorted(row) for row in at.tolist()] == [
        [i for i in range(9) if i != q] for q in range(9)
    ]
