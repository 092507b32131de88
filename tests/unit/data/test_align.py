"""Alignment by five points: the fit against least squares, the warp against slow loops."""

import numpy as np
import pytest

from kappaface_dist.data.align import REFERENCE_52, align_face, similarity, warp


def test_a_similarity_is_found_again():
    angle, scale, shift = 0.7, 1.9, np.array([3.0, -8.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = np.random.default_rng(0).normal(0, 20, (5, 2))
    found = similarity(points, points @ turn.T + shift)
    np.testing.assert_allclose(found, np.concatenate([turn, shift[:, None]], axis=1), atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_is_that_of_linear_least_squares(seed):
    # x' = a x - b y + c, y' = b x + a y + d is linear in a, b, c, d: no rotation by SVD needed.
    rng = np.random.default_rng(seed)
    source, target = rng.normal(0, 20, (5, 2)), REFERENCE_52 + rng.normal(0, 3, (5, 2))
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        values += [u, v]
    a, b, c, d = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    np.testing.assert_allclose(similarity(source, target), [[a, -b, c], [b, a, d]], atol=1e-9)


def test_points_in_one_place_are_refused():
    with pytest.raises(ValueError, match="five points are all at"):
        similarity(np.full((5, 2), 7.0), REFERENCE_52)


def test_the_warp_is_bilinear_between_the_centres_of_pixels():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    matrix = np.array([[0.9, -0.3, 4.0], [0.3, 0.9, -2.0]])
    found = warp(pixels, matrix, 36, 28).astype(float)
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    compared = 0
    for v in range(28):
        for u in range(36):
            x, y, _ = inverse @ (u, v, 1)
            if not (1 <= x < 38 and 1 <= y < 28):
                continue
            i, j = int(y), int(x)
            f, g = y - i, x - j
            expected = (
                (1 - f) * (1 - g) * pixels[i, j].astype(float)
                + (1 - f) * g * pixels[i, j + 1]
                + f * (1 - g) * pixels[i + 1, j]
                + f * g * pixels[i + 1, j + 1]
            )
            assert np.abs(found[v, u] - expected).max() < 1.01  # Pillow cuts off
            compared += 1
    assert compared > 500


@pytest.mark.parametrize("size", [112, 56])
def test_an_aligned_face_stays_as_it_is(size):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)
    found = align_face(pixels, REFERENCE_52, size)
    assert found.shape == (size, size, 3)
    if size == 112:
        assert np.abs(found.astype(int) - pixels)[1:-1, 1:-1].max() <= 1
