"""A verification report: one HTML file that needs nothing beside it, its plots as PNGs, tables."""

import base64
import html
import io
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from PIL import Image

from kappaface_dist.evaluation.plots import det_figure, histogram_figure, roc_figure
from kappaface_dist.evaluation.set_report import HardPair, SetReport
from kappaface_dist.evaluation.tables import latex_table, markdown_table

PACKAGES = ("kappaface_dist", "torch", "numpy", "simplejpeg", "pillow")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { margin-top: 2.4rem; font-size: 1.3rem; }
h3 { font-size: 1.05rem; margin-bottom: .3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; } .note { color: #7a4b00; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; }
.figures img { width: 520px; max-width: 100%; }
.pairs { display: flex; flex-wrap: wrap; gap: .8rem; }
.pairs figure { margin: 0; font-size: .8rem; text-align: center; color: #555; }
.pairs img { width: 76px; height: 76px; object-fit: cover; margin: 0 1px; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .85rem; }
.run td { text-align: left; } .run td:last-child { overflow-wrap: anywhere; white-space: normal; }
"""


def write_html_report(
    folder: Path,
    reports: Mapping[str, SetReport],
    *,
    title: str,
    facts: Mapping[str, str],
    config: Mapping[str, Any] | None,
) -> None:
    """Write report.html, table.md, table.tex and plots/*.png into folder.

    Args:
        facts: what was run: model, hash, settings; the versions are added here.
        config: the run's configuration, where it is known.
    """
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(markdown_table(reports), encoding="utf-8")
    (folder / "table.tex").write_text(latex_table(reports), encoding="utf-8")
    parts = [f"<h1>{html.escape(title)}</h1>", _overview(reports)]
    curves = {name: r.result.roc for name, r in reports.items() if r.result.roc is not None}
    bands = {name: r.intervals for name, r in reports.items() if r.intervals is not None}
    if curves:
        figures = {
            "roc": ("ROC of all sets", roc_figure(curves, "ROC", bands)),
            "det": ("Error trade-off (DET) of all sets", det_figure(curves, "DET", bands)),
        }
        parts += [
            "<h2>Curves</h2>",
            "<p>Shaded: 95 % bootstrap intervals over identities.</p>" if bands else "",
            _figures(folder, figures),
        ]
    for name, report in reports.items():
        parts.append(_set_section(folder, name, report))
    parts += ["<h2>What was run</h2>", _run_table({**facts, **versions()})]
    if config is not None:
        text = yaml.safe_dump(dict(config), sort_keys=False)
        parts += ["<h3>Configuration of the run</h3>", f"<pre>{html.escape(text)}</pre>"]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed: run from a source tree"
    return found


def _overview(reports: Mapping[str, SetReport]) -> str:
    """The Markdown table again, as HTML: one place decides about its cells."""
    header, _, *rows = markdown_table(reports).splitlines()

    def cells(line: str, tag: str) -> str:
        texts = re.split(r"(?<!\\)\|", line)[1:-1]
        return "".join(
            f"<{tag}>{html.escape(text.strip()).replace(chr(92) + '|', '|')}</{tag}>"
            for text in texts
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    notes = "".join(
        f'<p class="note">{html.escape(name)}: {html.escape(report.result.note)}.</p>'
        for name, report in reports.items()
        if report.result.note
    )
    return (
        "<p>Percent; accuracy is the mean and standard deviation over ten folds, brackets are 95 %"
        " bootstrap intervals over identities. Tables for papers: table.md, table.tex.</p>"
        '<div class="scroll"><table id="results">'
        f"<tr>{cells(header, 'th')}</tr>{body}</table></div>{notes}"
    )


def _set_section(folder: Path, name: str, report: SetReport) -> str:
    result = report.result
    figure = histogram_figure(result.distance_P, report.same_P, f"Scores of {name}")
    baseline = "" if report.pixels is None else f"; raw pixels alone reach {report.pixels:.2%}"
    people = ""
    if report.intervals is not None:
        people = (
            f" Intervals: {report.intervals.num_replicates} replicates over"
            f" {report.intervals.num_identities} identities, as far as the set tells them apart."
        )
    return "\n".join(
        [
            f"<h2>{html.escape(name)}</h2>",
            f"<p>{result.num_pairs} pairs, {result.num_same} of them of one person{baseline}."
            f"{people}</p>",
            _figures(folder, {f"scores_{_file_name(name)}": (f"Scores of {name}", figure)}),
            _pictures("Hardest false matches: different people, most alike", report.false_matches),
            _pictures(
                "Hardest false non-matches: one person, least alike", report.false_non_matches
            ),
        ]
    )


def _figures(folder: Path, figures: Mapping[str, tuple[str, Figure]]) -> str:
    images = []
    for stem, (caption, figure) in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        (folder / "plots" / f"{stem}.png").write_bytes(buffer.getvalue())
        images.append(_image(buffer.getvalue(), "png", caption))
    return f'<div class="figures">{"".join(images)}</div>'


def _pictures(title: str, pairs: Sequence[HardPair]) -> str:
    if not pairs:
        return ""
    figures = "".join(
        f"<figure>{_image(_as_jpeg(p.first), 'jpeg', f'pair {p.number}, first image')}"
        f"{_image(_as_jpeg(p.second), 'jpeg', f'pair {p.number}, second image')}"
        f"<figcaption>pair {p.number}, cosine {1 - p.distance / 2:.3f}</figcaption></figure>"
        for p in pairs
    )
    return f'<h3>{html.escape(title)}</h3><div class="pairs">{figures}</div>'


def _as_jpeg(payload: bytes) -> bytes:
    """A picture that every browser shows: sets may hold formats that browsers do not know."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(payload)) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _image(content: bytes, kind: str, caption: str) -> str:
    encoded = base64.b64encode(content).decode("ascii")
    return f'<img alt="{html.escape(caption)}" src="data:image/{kind};base64,{encoded}">'


def _run_table(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>"
        for key, value in facts.items()
    )
    return f'<table class="run">{rows}</table>'


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)
