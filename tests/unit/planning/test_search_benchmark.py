"""The search finds what faiss finds, and the report says so."""

import pytest

from kappaface_dist.planning.search_benchmark import measure_search


def test_search_and_faiss_agree():
    pytest.importorskip("faiss")
    sizes = {"num_entries": 500, "num_probes": 40, "embedding_size": 64}
    report = measure_search(**sizes, num_threads=1, num_repeats=2, with_faiss=True)
    assert report["rank_1"] == report["faiss_rank_1"] > 0.9
    assert len(report["search"]["seconds"]) == len(report["faiss_top_20"]["seconds"]) == 2
