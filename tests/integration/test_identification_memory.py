"""A gallery of 100 000 against 1000 probes: the score matrix is never held."""

import json

from tests.integration.test_verification_tools import start


def test_a_large_gallery_is_searched_in_bounded_memory():
    ended = start("tools/benchmark_identification.py", "--no-faiss", "--repeats=1", "--json=-")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["gallery"], found["probes"]) == (100_000, 1000)
    assert found["score_matrix_megabytes"] == 400
    # Two blocks of 1024 x 4096 scores (17 MB each), their mates' rows, the products' work space.
    assert found["extra_peak_megabytes"] < 150
    assert found["rank_1"] > 0.99
