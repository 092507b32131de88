"""Time identification of probes in a large gallery, and compare with faiss's flat index.

    python tools/bench_identification.py --gallery 100000 --probes 1000

Random unit embeddings. This project's search gives each probe's mate, its rank and the best other
entry; faiss (pip install faiss-cpu) gives the best entries. Both run in turn, several times.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from kappaface_dist.commands import run, write_json
from kappaface_dist.evaluation.one_to_many.search import search


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gallery", type=int, default=100_000, metavar="ENTRIES")
    parser.add_argument("--probes", type=int, default=1_000, metavar="IMAGES")
    parser.add_argument("--embedding-size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-faiss", action="store_true", help="this project's search only")
    parser.add_argument("--json", metavar="PATH|-", help="write the numbers as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    gallery_ND = _unit_rows(rng, args.gallery, args.embedding_size)
    probe_QD = _unit_rows(rng, args.probes, args.embedding_size)
    subject_N, subject_Q = np.arange(args.gallery), rng.integers(args.gallery, size=args.probes)
    # Something to find: each probe is its mate with as much noise again.
    probe_QD = gallery_ND[subject_Q] + probe_QD
    probe_QD /= np.linalg.norm(probe_QD, axis=1, keepdims=True)

    # What the libraries allocate once, at their first product, is no part of the search.
    search(probe_QD[:64], subject_Q[:64], gallery_ND[:4096], subject_N[:4096])
    before = _peak_megabytes()
    found = search(probe_QD, subject_Q, gallery_ND, subject_N)
    report = {
        "gallery": args.gallery,
        "probes": args.probes,
        "threads": args.threads,
        "rank_1": float(np.mean(found.rank_Q == 1)),
        "score_matrix_megabytes": args.gallery * args.probes * 4 / 1e6,
        "extra_peak_megabytes": round(_peak_megabytes() - before, 1),
    }
    runs: dict[str, Callable[[], object]] = {
        "search": lambda: search(probe_QD, subject_Q, gallery_ND, subject_N)
    }
    if not args.no_faiss:
        index = _faiss_index(gallery_ND, args.threads)
        for depth in (1, 20):
            runs[f"faiss_top_{depth}"] = lambda depth=depth: index.search(probe_QD, depth)
        agree = index.search(probe_QD, 1)[1][:, 0] == subject_Q
        report["faiss_rank_1"] = float(agree.mean())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, function in runs.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    comparisons = args.gallery * args.probes
    for name, values in seconds.items():
        median = statistics.median(values)
        report[name] = {
            "seconds": [round(value, 3) for value in values],
            "million_comparisons_per_second": round(comparisons / median / 1e6, 1),
        }
        if args.json != "-":
            print(f"{name}: {median:.3f} s, {comparisons / median / 1e6:.0f} M comparisons/s")
    if args.json != "-":
        print(
            f"rank-1 {report['rank_1']:.2%}; {report['extra_peak_megabytes']} MB beside the"
            f" embeddings, the score matrix would be {report['score_matrix_megabytes']:.0f} MB"
        )
    write_json(args.json, report)


def _unit_rows(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    rows = np.empty((count, size), dtype=np.float32)
    for first in range(0, count, 4096):  # in blocks: the peak before the search is then its floor
        block = rng.standard_normal((min(4096, count - first), size), dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        rows[first : first + 4096] = block
    return rows


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _faiss_index(gallery_ND: np.ndarray, threads: int):  # type: ignore[no-untyped-def]
    try:
        import faiss
    except ImportError as error:
        raise RuntimeError(
            "the comparison needs faiss: pip install 'kappaface_dist[dev]', or give --no-faiss"
        ) from error
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(gallery_ND.shape[1])
    index.add(gallery_ND)
    return index


if __name__ == "__main__":
    run(main)
