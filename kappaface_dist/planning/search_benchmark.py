"""The search of probes in a gallery beside faiss's flat index.

Shapes: N entries of the gallery, Q probes, D embedding size.
"""

import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from kappaface_dist.evaluation.one_to_many.search import search


def measure_search(
    num_entries: int,
    num_probes: int,
    embedding_size: int,
    *,
    num_threads: int,
    num_repeats: int,
    with_faiss: bool,
) -> dict[str, Any]:
    """Time, memory and rank-1 of random unit embeddings, the contestants in turns.

    Raises:
        RuntimeError: faiss is asked for and not installed.
    """
    torch.set_num_threads(num_threads)
    rng = np.random.default_rng(0)
    gallery_ND = unit_rows(rng, num_entries, embedding_size)
    probe_QD = unit_rows(rng, num_probes, embedding_size)
    subject_N, subject_Q = np.arange(num_entries), rng.integers(num_entries, size=num_probes)
    # Something to find: each probe is its mate with as much noise again.
    probe_QD = gallery_ND[subject_Q] + probe_QD
    probe_QD /= np.linalg.norm(probe_QD, axis=1, keepdims=True)

    # What the libraries allocate once, at their first product, is no part of the search.
    search(probe_QD[:64], subject_Q[:64], gallery_ND[:4096], subject_N[:4096])
    before = peak_megabytes()
    found = search(probe_QD, subject_Q, gallery_ND, subject_N)
    report: dict[str, Any] = {
        "gallery": num_entries,
        "probes": num_probes,
        "threads": num_threads,
        "rank_1": float(np.mean(found.rank_Q == 1)),
        "score_matrix_megabytes": num_entries * num_probes * 4 / 1e6,
        "extra_peak_megabytes": round(peak_megabytes() - before, 1),
    }
    contestants: dict[str, Callable[[], object]] = {
        "search": partial(search, probe_QD, subject_Q, gallery_ND, subject_N)
    }
    if with_faiss:
        index = faiss_index(gallery_ND, num_threads)
        for depth in (1, 20):
            contestants[f"faiss_top_{depth}"] = partial(index.search, probe_QD, depth)
        report["faiss_rank_1"] = float(np.mean(index.search(probe_QD, 1)[1][:, 0] == subject_Q))
    seconds = take_turns(contestants, num_repeats)
    for name, values in seconds.items():
        median = statistics.median(values)
        report[name] = {
            "seconds": [round(value, 3) for value in values],
            "million_comparisons_per_second": round(num_entries * num_probes / median / 1e6, 1),
        }
    return report


def take_turns(
    contestants: dict[str, Callable[[], object]], num_repeats: int
) -> dict[str, list[float]]:
    """The seconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(num_repeats):
        for name, function in contestants.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def unit_rows(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    rows_ND = np.empty((count, size), dtype=np.float32)
    for first in range(0, count, 4096):  # in blocks: the peak before the search is then its floor
        block = rng.standard_normal((min(4096, count - first), size), dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        rows_ND[first : first + 4096] = block
    return rows_ND


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def faiss_index(gallery_ND: np.ndarray, num_threads: int) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise RuntimeError(
            "the comparison needs faiss: pip install 'kappaface_dist[dev]', or give --no-faiss"
        ) from error
    faiss.omp_set_num_threads(num_threads)
    index = faiss.IndexFlatIP(gallery_ND.shape[1])
    index.add(gallery_ND)
    return index
