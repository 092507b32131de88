"""The softmax's settings check themselves, whoever makes them."""

import pytest
import torch

from kappaface_dist.head.softmax.settings import Softmax, fitting_rows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.0}, r"margin\.scale is 0\.0"),
        ({"largest_cosine": 2.0, "scale": 65.0}, r"margin\.scale is 65\.0: .* at most 64,"),
        ({"sample_rate": 0.0}, r"head\.sample_rate is 0\.0"),
        ({"filter_threshold": 1.0}, r"head\.filter_threshold is 1\.0"),
        ({"logit_cache_bytes": -1}, r"head\.logit_cache_bytes is -1"),
        ({"skip_mass": 1.0}, r"head\.skip_mass is 1\.0"),
        ({"skip_mass": 0.1, "largest_cosine": 2.0}, r"head\.skip_mass is 0\.1, but this margin"),
        ({"split_centres": True}, r"head\.split_centres needs bf16 products"),
    ],
)
def test_settings_that_cannot_be_meant(settings, message):
    with pytest.raises(ValueError, match=message):
        Softmax(**{"scale": 64.0, **settings})


@pytest.mark.parametrize(
    ("images", "size", "rows"), [(64, 512, 1024), (2048, 512, 256), (9, 9, 58240)]
)
def test_a_chunk_holds_what_fits(images, size, rows):
    """2 MB of fp32 logits or centres, whichever are longer, in multiples of 128."""
    assert fitting_rows(2 << 20, images, size) == rows
    embedding_GD = torch.empty(images, size, device="meta")
    assert Softmax(scale=1.0, chunk_bytes=2 << 20).chunk_rows(embedding_GD) == rows
    assert Softmax(scale=1.0, rows_per_chunk=5, chunk_bytes=2 << 20).chunk_rows(embedding_GD) == 5
