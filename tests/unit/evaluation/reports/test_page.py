"""The page of a report as an HTML parser reads it: what it is given is text, never markup."""

from html.parser import HTMLParser

import numpy as np
import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure

from kappaface_dist.evaluation.reports.page import (
    PAGES,
    Picture,
    PicturePair,
    read_picture,
    write_figures,
    write_page,
)
from kappaface_dist.evaluation.reports.table_formats import Table

HOSTILE = """<b>x</b> & "y" 'z' {{ 1 + 1 }}"""


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.values = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.values += [value for _, value in attributes]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def page(tmp_path):
    """A page for identification with a hostile string wherever a string goes."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pair = PicturePair(
        HOSTILE, read_picture(HOSTILE, lambda: pixels), Picture(HOSTILE, None, HOSTILE)
    )
    template = PAGES.from_string(
        '{% extends "report.html" %}'
        '{% from "parts.html" import figures, note, picture_pairs, results %}'
        "{% block content %}{{ results(tables) }}{{ note(text) }}{{ figures(drawn) }}"
        "{{ picture_pairs(text, pairs) }}{{ picture_pairs(text, [], text) }}"
        "{{ picture_pairs('left out', []) }}{% endblock %}"
    )
    write_page(
        tmp_path,
        template,
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
        config={HOSTILE: "v", "set": HOSTILE},
        tables={HOSTILE: Table([HOSTILE, "AUC"], [[HOSTILE, "1.00 [0.50–2.00]"]])},
        comment="percent",
        text=HOSTILE,
        drawn=write_figures(tmp_path, {HOSTILE: (HOSTILE, Figure())}),
        pairs=[pair],
    )
    return (tmp_path / "report.html").read_text()


def test_what_a_page_is_given_is_shown_as_such(page):
    read = Reader(page)
    assert "b" not in read.tags
    # Title twice, fact twice, table's heading, header and row, note, two headings, caption, none.
    assert read.texts.count(HOSTILE) == 12
    assert read.values.count(HOSTILE) == 2  # what pictures are called
    assert f"{HOSTILE}: {HOSTILE}" in read.values
    config = next(text for text in read.texts if "set: " in text)
    assert '<b>x</b> & "y"' in config
    assert "left out" not in page


def test_an_interval_stands_below_its_number(page):
    assert "<td>1.00 <small>[0.50–2.00]</small></td>" in page


def test_two_pictures_have_no_space_between_them(page):
    # They fill the width of their figure to the pixel.
    assert '"><span class="missing"' in page
    assert "not readable</span><figcaption>" in page


def test_what_a_template_lacks_is_an_error(tmp_path):
    with pytest.raises(UndefinedError, match="'result' is undefined"):
        write_page(
            tmp_path, "identification.html", title="t", facts={}, config=None, tables={}, comment=""
        )
