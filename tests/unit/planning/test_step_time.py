"""Bytes and operations of the head's step, against what each pass is said to write and read."""

import pytest

from kappaface_dist.config.keys import Backbone, Config, Head
from kappaface_dist.planning.step_time import head_work, logit_traffic

G, K, D = 1024, 1_250_000, 512


@pytest.mark.parametrize(
    ("kind", "cache_share", "bytes_per_logit"),
    [
        ("fused", 0.0, 24),  # ../shared/design/head.md: fp32 out and in, bf16 out and in, twice
        ("fused", 1.0, 14),
        ("fused", 0.5, 19),
        ("tiles", 0.0, 0),
        ("plain", 0.0, 72),
        ("cpu", 0.0, 0),
        ("cpu", 1.0, 4),
    ],
)
def test_every_logit_is_counted(kind, cache_share, bytes_per_logit):
    found = logit_traffic(G, K, int(cache_share * 2 * G * K), kind)
    assert found == pytest.approx(G * K * bytes_per_logit)


def test_logits_outweigh_the_centres_on_a_gpu():
    config = Config(backbone=Backbone(embedding_size=D), head=Head(dtype="bf16"))
    flops, num_bytes = head_work(config, G, K, "cuda")
    assert flops == 4 * 2 * G * K * D
    assert num_bytes == 24 * G * K + 20 * K * D
    assert head_work(config, G, K, "cpu")[1] == 20 * K * D
    tiles = Config(backbone=Backbone(embedding_size=D), head=Head(dtype="bf16", fused="tiles"))
    assert head_work(tiles, G, K, "cuda") == (flops, 20 * K * D)
    assert head_work(config, G, 0, "cuda") == (0, 0)
