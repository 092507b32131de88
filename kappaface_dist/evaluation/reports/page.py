"""What every evaluation report is made of: a page that needs nothing beside it, plots, tables."""

import base64
import io
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from kappaface_dist.data.images import decode_picture
from kappaface_dist.evaluation.reports.names import in_file_name
from kappaface_dist.evaluation.reports.table_formats import (
    Table,
    as_latex,
    as_markdown,
    split_interval,
)
from kappaface_dist.whole_files import write_whole

PACKAGES = ("kappaface_dist", "torch", "numpy", "simplejpeg", "pillow")
PICTURE_SIZE = 160  # pixels; larger pictures are shrunk, a page holds dozens


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
            # As the model saw it: a JPEG of any size is decoded at a fraction of it.
            content = decode_picture(content, PICTURE_SIZE)
        image = Image.fromarray(content)
        image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
        image.save(buffer, "JPEG", quality=92)
    except (OSError, ValueError) as error:
        # After an evaluation of hours a picture that has gone since is no reason to have no report.
        return Picture(label, None, str(error))
    return Picture(label, buffer.getvalue())


def write_page(
    folder: Path,
    template: str,
    *,
    title: str,
    facts: Mapping[str, str],
    config: Mapping[str, Any] | None,
    tables: Mapping[str, Table],
    comment: str,
    **content: Any,
) -> Path:
    """Write report.html, and its tables for papers as table.md and table.tex; returns the page.

    Args:
        template: in pages/, an extension of report.html, which ends with what was run.
        facts: model, hash, settings; the versions are added here.
        config: the run's configuration, where it is known.
        tables: by heading, an empty one for none.
        comment: what the cells hold.
        content: what else the template shows.
    """
    markdown, latex = [], []
    for heading, table in tables.items():
        markdown.append((f"### {heading}\n\n" if heading else "") + as_markdown(table))
        latex.append(as_latex(table, f"{heading}: {comment}" if heading else comment))
    write_whole(folder / "table.md", "\n".join(markdown))
    write_whole(folder / "table.tex", "\n".join(latex))
    page = PAGES.get_template(template).render(
        title=title,
        facts={**facts, "date": today(), **versions()},
        config=config,
        tables=tables,
        **content,
    )
    path = folder / "report.html"
    write_whole(path, page)
    return path


def today() -> str:
    """When the report was written, to the minute."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed: run from a source tree"
    return found


def write_figures(folder: Path, drawn: Mapping[str, tuple[str, Figure]]) -> list[tuple[str, bytes]]:
    """Write figures to plots/; returns (caption, PNG) of each, for the page.

    Args:
        drawn: by the file's name, the caption and the figure.
    """
    images = []
    for stem, (caption, figure) in drawn.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        write_whole(folder / "plots" / f"{in_file_name(stem)}.png", buffer.getvalue())
        images.append((caption, buffer.getvalue()))
    return images


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False)


# Names of sets, people and files are the users': whatever a page is given is shown as text.
PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("pages")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters |= {"base64": as_base64, "split_interval": split_interval, "yaml": as_yaml}
