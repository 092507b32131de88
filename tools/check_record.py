"""Look at every image of a dataset; exit code 1 if there is something to put right.

Example: python tools/check_record.py data/ms1mv3/train.rec --plot check.png
"""

import sys
from typing import Any

import numpy as np

from kappaface_dist import commands, options
from kappaface_dist.data.prepare.check import CheckReport, check_catalog
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.parallel.cores import num_cores


def main() -> None:
    parser = commands.new_parser(__doc__)
    parser.add_argument(
        "data", nargs="+", help="record file(s), .tar, .parquet, .arrow, or a folder of identities"
    )
    options.add_threads(parser)
    parser.add_argument("--plot", metavar="PNG", help="draw the images per identity")
    options.add_json(parser)
    args = parser.parse_args()

    catalog = open_catalog(args.data if len(args.data) > 1 else args.data[0])
    report = check_catalog(
        catalog,
        num_threads=args.threads or num_cores(),
        progress=commands.image_progress(),
    )
    numbers = summary(report)
    if args.plot:
        plot(report, args.plot)
    out = sys.stderr if args.json == "-" else sys.stdout
    print(
        f"{report.num_images} images of {len(report.count_C)} identities,"
        f" {report.count_C.min()} to {report.count_C.max()} each (median"
        f" {np.median(report.count_C):.0f})",
        file=out,
    )
    for where, why in report.unreadable:
        print(f"unreadable: {where}: {why}", file=out)
    for where, other in report.shared:
        print(f"in two identities: {where} and {other}", file=out)
    for fault in report.range_faults:
        print(f"identity header: {fault}", file=out)
    for where, why in report.left_out.listed:
        print(f"left out: {where}: {why}", file=out)
    print(f"verdict: {report.verdict}", file=out)
    commands.write_json(args.json, numbers)
    if report.problems:
        sys.exit(1)


def summary(report: CheckReport) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "verdict": report.verdict,
        "good": report.verdict.startswith("good"),
        "num_images": report.num_images,
        "num_classes": len(report.count_C),
        "images_per_class": {
            "min": int(report.count_C.min()),
            "median": float(np.median(report.count_C)),
            "max": int(report.count_C.max()),
        },
        "num_unreadable": report.num_unreadable,
        "num_only_end_missing": report.num_only_end_missing,
        "unreadable": [{"where": where, "reason": why} for where, why in report.unreadable],
        "empty_classes": report.empty_classes,
        "num_duplicates": report.num_duplicates,
        "num_in_two_identities": report.num_shared,
        "in_two_identities": report.shared,
        "identity_header": report.range_faults,
        "left_out": dict(report.left_out.counts),
        "sizes": report.sizes,
        "formats": report.formats,
    }


def plot(report: CheckReport, path: str) -> None:
    """Images of each identity, in descending order, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    counts = np.sort(report.count_C)[::-1]
    axes.step(np.arange(1, len(counts) + 1), np.maximum(counts, 0.5), where="mid")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("identities, largest first")
    axes.set_ylabel("images (0 drawn as ½)")
    axes.set_title(f"{report.num_images} images of {len(counts)} identities")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    commands.run(main)
