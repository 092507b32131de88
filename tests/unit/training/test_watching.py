"""A run as one watches it."""

import json

import pytest

from kappaface_dist.training.watching import (
    BLOCKS,
    in_terminal,
    look_at,
    sparkline,
    thinned,
    write_watch_page,
)
from tests.browser import look_at as in_browser


@pytest.fixture
def run(tmp_path):
    """A run folder in the middle of its training, with a name that wants to be HTML."""
    folder = tmp_path / "<b>run & co"
    folder.mkdir()
    (folder / "config.yaml").write_text("{}\n")
    lines = [
        {"step": step, "epoch": step / 100, "loss": 20 - step / 100, "memory_bytes": 2e9}
        for step in range(10, 1010, 10)
    ]
    lines.insert(50, {"step": 500, "accuracy/unseen": 0.91})
    lines.append({"step": 1000, "accuracy/unseen": 0.97})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_terminal_shows_the_last_and_the_span(run):
    now = (run / "metrics.jsonl").stat().st_mtime + 7
    text = in_terminal(look_at(run, now))
    assert "step 1000, epoch 10.00, last numbers 7 s ago" in text
    loss = next(line for line in text.splitlines() if line.strip().startswith("loss"))
    assert BLOCKS[-1] in loss
    assert loss.endswith("10.000  (10.000 to 19.900)")
    assert "accuracy on unseen" in text
    assert "97.00%  (91.00% to 97.00%)" in text
    assert "2.00 GB" in text
    assert text.count("loss") == 1


def test_the_page_shows_what_the_terminal_does(run, tmp_path):
    page = tmp_path / "pages" / "watch.html"
    # Longer than the browser looks: a page that reloads meanwhile says nothing of itself.
    write_watch_page(page, look_at(run, 0), 60)
    assert '<meta http-equiv="refresh" content="60">' in page.read_text()
    found = in_browser(page, tmp_path)
    assert "<b>run & co" in found["text"]
    assert "accuracy on unseen" in found["text"]
    assert "91.00% to 97.00%" in found["text"]


def test_a_finished_run_is_not_looked_at_again(run, tmp_path):
    (run / "summary.json").write_text("{}")
    view = look_at(run, 0)
    assert view.finished
    assert view.state.startswith("finished at step 1000")
    write_watch_page(tmp_path / "watch.html", view, 5)
    assert "http-equiv" not in (tmp_path / "watch.html").read_text()


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "config.yaml").write_text("{}\n")
    view = look_at(tmp_path, 0)
    assert "no numbers yet" in in_terminal(view)
    write_watch_page(tmp_path / "watch.html", view, 1)
    assert "Nothing to draw yet" in (tmp_path / "watch.html").read_text()


def test_one_line_is_a_curve(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "lo')
    (curve,) = look_at(tmp_path, 0).curves
    assert curve.points(300, 100) == "0.0,50.0 300.0,50.0"
    assert "3.000" in in_terminal(look_at(tmp_path, 0))


def test_a_rounding_is_no_rise(tmp_path):
    lines = [(1, 0.28, 3.0), (2, 0.28 + 3e-8, 2.0), (3, 0.28, 2.5)]
    text = "".join(f'{{"step": {s}, "margin_mean": {m}, "loss": {x}}}\n' for s, m, x in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    loss, margin = look_at(tmp_path, 0).curves
    assert margin.points(300, 100) == "0.0,50.0 300.0,50.0"
    assert loss.points(300, 100) == "0.0,0.0 150.0,100.0 300.0,50.0"
    row = next(x for x in in_terminal(look_at(tmp_path, 0)).splitlines() if "margin" in x)
    assert row.count(BLOCKS[0]) == 3


def test_what_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        look_at(tmp_path, 0)


def test_bars_follow_the_values():
    assert sparkline([0, 1, 2, 3.5, 7]) == "▁▂▃▅█"  # round half to even
    assert sparkline([4, 4]) == "▁▁"
    assert thinned(range(100), 3) == [0, 50, 99]
