"""The number of each image among those of its class."""

import numpy as np
import pytest

from kappaface_dist.data.loading.numbering import numbers_in_class


@pytest.mark.parametrize("num_images", [1, 2, 500])
def test_numbers_are_counted_in_order(num_images):
    label_I = np.random.default_rng(num_images).integers(0, 23, num_images)
    seen: dict[int, int] = {}
    expected = []
    for label in label_I.tolist():
        expected.append(seen.get(label, 0))
        seen[label] = expected[-1] + 1
    found = numbers_in_class(label_I)
    assert found.dtype == np.int32
    assert found.tolist() == expected
    by_class = np.sort(label_I)
    assert numbers_in_class(by_class).tolist() == [
        int(i - np.searchsorted(by_class, c)) for i, c in enumerate(by_class)
    ]
