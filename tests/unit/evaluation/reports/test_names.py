"""Any text is a name: read back by matplotlib, by a Markdown program, and by LaTeX's own rules."""

import html
import io
import re
import warnings

import markdown
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser

from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.evaluation.protocol import roc
from kappaface_dist.evaluation.reports.names import (
    MOST_IN_FILE_NAME,
    in_file_name,
    in_latex,
    in_markdown,
    in_picture,
    one_line,
)
from kappaface_dist.evaluation.reports.page import read_picture, write_figures
from kappaface_dist.evaluation.reports.plots import det_figure, histogram_figure, roc_figure
from kappaface_dist.evaluation.reports.table_formats import Table, as_latex, as_markdown, as_text

NAMES = [
    r"lfw $\alpha_{$",
    r"lfw $\alpha_{$ $",
    "n" * 300,
    "_hidden",
    "two\nlines\r\nand \x1b[31mred\x00",
    r"a\|b & <img src=x onerror=alert(1)> ~^#%_{}*`x`* [y](z)",
    "[a] *b* first",
    "half \ud800 a character",
    "пары 人脸",
]
TEX = {
    "textbackslash{}": "\\", "textasciitilde{}": "~", "textasciicircum{}": "^",
    "textless{}": "<", "textgreater{}": ">", "textbar{}": "|",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_a_name(name):
    generator = np.random.default_rng(0)
    curve = roc(generator.normal(1, 0.3, 40), np.tile([True, False], 20))
    scores = {"different": np.zeros(5), "same": np.ones(5)}
    for figure in (
        roc_figure({name: curve}, name),
        det_figure({name: curve}, name),
        histogram_figure(scores, name),
    ):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # of scripts that the font lacks
            figure.savefig(io.BytesIO(), format="png")
    (axes,) = roc_figure({name: curve}).axes
    shown = axes.get_legend().get_texts()[0]
    text, is_formula = shown._preprocess_math(shown.get_text())
    assert not is_formula
    start = one_line(name)[:30]
    assert text.strip().startswith(start)
    assert len(text) < 100


def test_a_formula_ends_a_picture_where_it_is_not_told_apart():
    # Else the test above says nothing.
    figure = Figure()
    figure.add_subplot().set_title(NAMES[0])
    with pytest.raises(ValueError, match="alpha"):
        figure.savefig(io.BytesIO(), format="png")
    assert MathTextParser("path").parse(in_picture("50 %"))


@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_a_name(name):
    page = markdown.markdown(
        as_markdown(Table(["set", "AUC"], [[name, "1"]])), extensions=["tables"]
    )
    rows = re.findall(r"<td[^>]*>(.*?)</td>", page, flags=re.DOTALL)
    assert rows[1:] == ["1"]
    assert "<" not in rows[0]
    assert html.unescape(rows[0]) == one_line(name)


def test_a_usual_name_stays_as_it_is():
    for write in (in_markdown, in_file_name, in_picture):
        assert write("cfp_fp-2.1") == "cfp_fp-2.1"
    assert in_latex("cfp_fp") == r"cfp\_fp"


@pytest.mark.parametrize("name", NAMES)
def test_latex_shows_a_name(name):
    lines = as_latex(Table(["set", "AUC"], [["first", "1"], [name, "1"]]), name).splitlines()
    assert [line[0] for line in lines].count("%") == 1
    (row,) = [line for line in lines if line.endswith(r"& 1 \\") and not line.startswith("first")]
    assert row[0] not in "[*"
    cell = row.removesuffix(r" & 1 \\")
    # What LaTeX makes of it: no character with a meaning stands bare, and the name is shown.
    shown = ""
    while cell:
        command = next((x for x in TEX if cell.startswith("\\" + x)), None)
        if command:
            shown, cell = shown + TEX[command], cell[len(command) + 1 :]
        elif cell[0] == "\\":
            assert cell[1] in "&%$#_{}"
            shown, cell = shown + cell[1], cell[2:]
        elif cell[0] == "{":
            shown, cell = shown + cell[1], cell[3:]
        else:
            assert cell[0] not in "&%$#_}~^<>|"
            shown, cell = shown + cell[0], cell[1:]
    assert shown == one_line(name)


def test_a_table_on_a_terminal_has_a_line_per_row():
    text = as_text([["set", "AUC"], *([name, "1"] for name in NAMES)])
    assert len(text.split("\n")) == len(NAMES) + 1
    assert "\x1b" not in text


def test_files_have_short_names_that_differ(tmp_path):
    names = [*NAMES, "n" * 301, "a b", "a_b", "a\nb", "ä" * 300, "ä" * 301]
    found = [in_file_name(name) for name in names]
    assert len(set(found)) == len(names)
    assert max(len(name.encode()) for name in found) <= MOST_IN_FILE_NAME
    write_figures(tmp_path, {name: ("caption", Figure()) for name in names})
    assert len(list((tmp_path / "plots").iterdir())) == len(names)


def test_a_picture_of_any_size_is_shown_or_says_why():
    large = encode_jpeg(np.zeros((7000, 9000, 3), np.uint8))  # 63 million pixels
    assert read_picture("large", lambda: large).jpeg is not None
    png = bytearray(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    png += (60000).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0"
    assert "not a readable image" in read_picture("bomb", lambda: bytes(png)).problem
