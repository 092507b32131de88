"""Time identification of probes in a large gallery, and compare with faiss's flat index.

    python tools/benchmark_identification.py --gallery 100000 --probes 1000

Random unit embeddings. This project's search gives each probe's mate, its rank and the best other
entry; faiss (pip install faiss-cpu) gives the best entries. Both run in turn, several times.
"""

import statistics

import torch

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.planning.search_benchmark import measure_search


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--gallery", type=options.positive, default=100_000, metavar="ENTRIES")
    parser.add_argument("--probes", type=options.positive, default=1_000, metavar="IMAGES")
    options.add_embedding_size(parser)
    options.add_threads(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-faiss", action="store_true", help="this project's search only")
    options.add_json(parser)
    args = parser.parse_args()
    report = measure_search(
        args.gallery,
        args.probes,
        args.embedding_size,
        num_threads=args.threads or torch.get_num_threads(),
        num_repeats=args.repeats,
        with_faiss=not args.no_faiss,
    )
    if args.json != "-":
        for name, found in report.items():
            if isinstance(found, dict):
                print(
                    f"{name}: {statistics.median(found['seconds']):.3f} s,"
                    f" {found['million_comparisons_per_second']:.0f} M comparisons/s"
                )
        print(
            f"rank-1 {report['rank_1']:.2%}; {report['extra_peak_megabytes']} MB beside the"
            f" embeddings, the score matrix would be {report['score_matrix_megabytes']:.0f} MB"
        )
    write_json(args.json, report)


if __name__ == "__main__":
    run(main)
