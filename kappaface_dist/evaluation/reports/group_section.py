"""What a report on pairs says about groups and about the images' quality."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from kappaface_dist.evaluation.one_to_one.groups import MEASURES, GroupReport
from kappaface_dist.evaluation.one_to_one.quality import RejectCurve
from kappaface_dist.evaluation.reports.names import in_picture
from kappaface_dist.evaluation.reports.plots import new_figure
from kappaface_dist.evaluation.reports.table_formats import Table, with_interval


def group_table(report: GroupReport) -> Table:
    """A row per group and one for the spread between them, percent with intervals."""
    header = ["group", "people", "same", "different", "accuracy", "FMR", "FNMR"]
    table = Table(header, [])
    for group in report.groups:
        counts = [group.num_identities, group.num_same, group.num_different]
        cells = [
            with_interval(group.rates[name], group.intervals[name], "no pairs") for name in MEASURES
        ]
        table.rows.append([group.name, *map(str, counts), *cells])
    cells = [with_interval(*report.spread[name], "one group") for name in MEASURES]
    table.rows.append(["largest less smallest", "", "", "", *cells])
    return table


def group_note(report: GroupReport) -> str:
    """What the table's numbers are of, and what is not in it."""
    text = (
        f"Percent; all groups at the whole set's threshold for FAR {report.far}, cosine"
        f" {report.threshold:.3f}; pairs within a group count for it."
    )
    if report.num_mixed:
        text += f" {report.num_mixed} pairs of two groups are left out."
    if report.num_ungrouped:
        text += f" {report.num_ungrouped} pairs with an image of no group are left out."
    if report.num_unused_keys:
        text += f" {report.num_unused_keys} lines of the file are of nobody in the set."
    return text


def reject_figure(curves: Mapping[str, RejectCurve]) -> Figure:
    """The error of what is left over the share of images rejected, a curve per set."""
    figure, axes = new_figure("Error against rejected low-quality images")
    for name, curve in curves.items():
        (line,) = axes.plot(
            curve.share_X,
            curve.fnmr_X,
            linewidth=1.6,
            label=f"{in_picture(name)}: FNMR at FAR {curve.far}, area {curve.area:.4f}",
        )
        axes.axhline(curve.fnmr_X[0], color=line.get_color(), linestyle=":", linewidth=1)
    axes.set_xlabel("share of images rejected, shortest embeddings first")
    axes.set_ylabel("false non-match rate of the others")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="best", framealpha=0.9)
    return figure
