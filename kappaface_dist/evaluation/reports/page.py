"""What every evaluation report is made of: a page that needs nothing beside it, plots, tables."""

import base64
import html
import io
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from PIL import Image

from kappaface_dist.evaluation.reports.table_formats import Table, as_html, as_latex, as_markdown

PACKAGES = ("kappaface_dist", "torch", "numpy", "simplejpeg", "pillow")
PICTURE_SIZE = 160  # pixels; larger pictures are shrunk, a page holds dozens
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { margin-top: 2.4rem; font-size: 1.3rem; }
h3 { font-size: 1.05rem; margin-bottom: .3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td small { display: block; color: #666; }
.scroll { overflow-x: auto; } .note { color: #7a4b00; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; }
.figures img { width: 520px; max-width: 100%; }
.pairs { display: flex; flex-wrap: wrap; gap: .8rem; }
.pairs figure { margin: 0; width: 158px; font-size: .8rem; text-align: center; color: #555; }
.pairs img, .missing { width: 76px; height: 76px; object-fit: cover; margin: 0 1px; }
.missing { display: inline-flex; align-items: center; justify-content: center; overflow: hidden;
           vertical-align: top; background: #eee; font-size: .7rem; line-height: 1.2; }
figcaption { overflow-wrap: anywhere; line-height: 1.3; white-space: pre-line; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .85rem; }
.run td { text-align: left; } .run td:last-child { overflow-wrap: anywhere; white-space: normal; }
"""


@dataclass(frozen=True)
class Picture:
    """A picture as every browser shows it; without one, the problem says why."""

    label: str
    jpeg: bytes | None
    problem: str = ""


@dataclass(frozen=True)
class PicturePair:
    """Two pictures side by side above a caption."""

    caption: str
    first: Picture
    second: Picture


def read_picture(label: str, read: Callable[[], bytes | np.ndarray]) -> Picture:
    """A picture from encoded bytes or from pixels; one that cannot be had says so in the report.

    Args:
        read: the picture; OSError or ValueError if it cannot be had.
    """
    try:
        content = read()
        buffer = io.BytesIO()
        if isinstance(content, bytes):
            image = Image.open(io.BytesIO(content)).convert("RGB")
        else:
            image = Image.fromarray(content)
        image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
        image.save(buffer, "JPEG", quality=92)
    except (OSError, ValueError, SyntaxError) as error:
        # After an evaluation of hours a picture that has gone since is no reason to have no report.
        return Picture(label, None, str(error))
    return Picture(label, buffer.getvalue())


def write_page(
    folder: Path,
    parts: Sequence[str],
    *,
    title: str,
    facts: Mapping[str, str],
    config: Mapping[str, Any] | None,
) -> Path:
    """Write report.html of the given parts, followed by what was run.

    Args:
        facts: model, hash, settings; the versions are added here.
        config: the run's configuration, where it is known.
    """
    body = [f"<h1>{html.escape(title)}</h1>", *parts]
    body += ["<h2>What was run</h2>", _run_table({**facts, **versions()})]
    if config is not None:
        text = yaml.safe_dump(dict(config), sort_keys=False)
        body += ["<h3>Configuration of the run</h3>", f"<pre>{html.escape(text)}</pre>"]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def write_tables(folder: Path, tables: Mapping[str, Table], comment: str) -> str:
    """Write table.md and table.tex; returns the tables for the page, each below its heading.

    Args:
        tables: by heading, an empty one for none.
        comment: what the cells hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    markdown, latex, page = [], [], []
    for heading, table in tables.items():
        markdown.append((f"### {heading}\n\n" if heading else "") + as_markdown(table))
        latex.append(as_latex(table, f"{heading}: {comment}" if heading else comment))
        page.append(
            (f"<h3>{html.escape(heading)}</h3>" if heading else "") + as_html(table),
        )
    (folder / "table.md").write_text("\n".join(markdown), encoding="utf-8")
    (folder / "table.tex").write_text("\n".join(latex), encoding="utf-8")
    return "\n".join(page)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed: run from a source tree"
    return found


def paragraph(text: str, *, note: bool = False) -> str:
    """A paragraph; notes stand out."""
    kind = ' class="note"' if note else ""
    return f"<p{kind}>{html.escape(text)}</p>" if text else ""


def heading(text: str) -> str:
    """The heading of a section."""
    return f"<h2>{html.escape(text)}</h2>"


def figures(folder: Path, drawn: Mapping[str, tuple[str, Figure]]) -> str:
    """Figures side by side, also written to plots/.

    Args:
        drawn: by the file's name, the caption and the figure.
    """
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    images = []
    for stem, (caption, figure) in drawn.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        name = re.sub(r"[^\w.-]", "_", stem)
        (folder / "plots" / f"{name}.png").write_bytes(buffer.getvalue())
        images.append(_image(buffer.getvalue(), "png", caption))
    return f'<div class="figures">{"".join(images)}</div>'


def picture_pairs(title: str, pairs: Sequence[PicturePair], if_none: str = "") -> str:
    """Pairs of pictures below a title; where there is none, a sentence that says so."""
    if not pairs:
        return f"<h3>{html.escape(title)}</h3>{paragraph(if_none)}" if if_none else ""
    shown = "".join(
        f"<figure>{_picture(pair.first)}{_picture(pair.second)}"
        f"<figcaption>{html.escape(pair.caption)}</figcaption></figure>"
        for pair in pairs
    )
    return f'<h3>{html.escape(title)}</h3><div class="pairs">{shown}</div>'


def _picture(picture: Picture) -> str:
    if picture.jpeg is not None:
        return _image(picture.jpeg, "jpeg", picture.label)
    reason = html.escape(f"{picture.label}: {picture.problem}")
    return f'<span class="missing" title="{reason}">not readable</span>'


def _image(content: bytes, kind: str, caption: str) -> str:
    encoded = base64.b64encode(content).decode("ascii")
    return f'<img alt="{html.escape(caption)}" src="data:image/{kind};base64,{encoded}">'


def _run_table(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>"
        for key, value in facts.items()
    )
    return f'<table class="run">{rows}</table>'
