"""The report as a browser shows it, and the tables for papers."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.evaluation.reports.pair_set import report_set
from kappaface_dist.evaluation.reports.pair_tables import paper_table, text_table
from kappaface_dist.evaluation.reports.pairs import write_html_report
from kappaface_dist.evaluation.reports.table_formats import as_latex, as_markdown
from kappaface_dist.evaluation.sets.pair_file import write_pairs
from tests.browser import look_at


class Colour(nn.Module):
    """Mean colour as embedding."""

    def forward(self, image_B3HW):
        return image_B3HW.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Two sets: one of both kinds, and one with an awkward name and one kind."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (12, 3))
    payloads, same = [], []
    for number in range(120):
        first = number % 12
        second = first if number % 2 else (first + 1 + number % 7) % 12
        for person in (first, second):
            pixels = np.clip(colours[person] + rng.normal(0, 25, (16, 16, 3)), 0, 255)
            payloads.append(encode_jpeg(pixels.astype(np.uint8)))
        same.append(first == second)
    write_pairs(folder / "a.bin", payloads, same)
    alike = [number for number, flag in enumerate(same) if flag][:12]
    write_pairs(
        folder / "b.bin", [payloads[2 * n + k] for n in alike for k in (0, 1)], [True] * len(alike)
    )
    options = {
        "image_size": 16, "batch_size": 64, "device": torch.device("cpu"), "num_replicates": 50
    }  # fmt: skip
    return {
        "a": report_set(Colour(), folder / "a.bin", **options),
        "b|<script>window.injected=true</script>&_%": report_set(
            Colour(), folder / "b.bin", **options
        ),
    }


@pytest.fixture(scope="module")
def folder(reports, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_html_report(
        folder,
        reports,
        title="Verification of <tiny>",
        facts={"model": "x.safetensors"},
        config={"run": {"name": "x"}},
    )
    return folder


def test_hardest_pairs_are_the_extremes(reports):
    report = reports["a"]
    distance_P, same_P = report.result.distance_P, report.same_P
    assert report.false_matches[0].distance == distance_P[~same_P].min()
    assert report.false_non_matches[0].distance == distance_P[same_P].max()
    assert [p.distance for p in report.false_matches] == sorted(distance_P[~same_P])[:12]
    assert len(next(reports[name] for name in reports if name != "a").false_matches) == 0


def test_a_browser_shows_everything(folder, reports, tmp_path):
    found = look_at(folder / "report.html", tmp_path, drawn=True)
    # ROC, DET, rejects, two histograms; 12 + 12 pairs of a and 12 of b.
    assert len(found["images"]) == 5 + 2 * (12 + 12 + 12)
    names = list(reports)
    first_cells = [row[0] for row in found["rows"]]
    assert first_cells == ["set", *names, "same from this cosine on", *names]
    low, high = reports["a"].intervals.threshold_at_far["1e-1"]
    cosine = reports["a"].result.threshold_at_far["1e-1"]
    assert found["rows"][4][1] == f"{cosine:.3f} [{low:.3f}–{high:.3f}]"
    assert found["rows"][1][3].startswith(f"{100 * reports['a'].result.auc:.2f} [")


def test_a_named_set_says_who_and_resamples_its_people(tmp_path):
    # Six people with eight pictures each; equal pictures and same pairs alone tell 30 apart.
    rng = np.random.default_rng(0)
    names, payloads, same = [], [], []
    colours = rng.integers(0, 256, (6, 3))
    for number in range(60):
        first, second = number % 6, (number + number % 2) % 6
        for person in (first, second):
            pixels = np.clip(colours[person] + rng.normal(0, 25, (16, 16, 3)), 0, 255)
            payloads.append(encode_jpeg(pixels.astype(np.uint8)))
        names.append((f"<b>person {first}</b>", f"<b>person {second}</b>"))
        same.append(first == second)
    options = {"image_size": 16, "batch_size": 64, "num_replicates": 20}
    found = {}
    for kind, given in (("named", names), ("guessed", None)):
        write_pairs(tmp_path / f"{kind}.bin", payloads, same, given)
        path = tmp_path / f"{kind}.bin"
        found[kind] = report_set(Colour(), path, device=torch.device("cpu"), **options)
        assert found[kind].summary()["identities"] == kind
    counts = {kind: report.intervals.num_identities for kind, report in found.items()}
    assert counts == {"named": 6, "guessed": 90}
    hard = found["named"].false_matches[0]
    assert hard.names == names[hard.number]
    page = write_html_report(tmp_path / "report", found, title="x", facts={}, config=None)
    text = page.read_text()
    first, second = (name.replace("<b>", "&lt;b&gt;") for name in hard.names)
    assert f"{first.replace('</b>', '&lt;/b&gt;')} – {second.replace('</b>', '&lt;/b&gt;')}" in text
    assert "named beside the set" in text
    assert "guessed from equal pictures" in text


def test_plots_and_what_was_run_are_there(folder):
    assert {path.stem for path in (folder / "plots").glob("*.png")} >= {"roc", "det", "scores_a"}
    text = (folder / "report.html").read_text()
    for expected in ("x.safetensors", torch.__version__.split("+")[0], "name: x", "&lt;tiny&gt;"):
        assert expected in text
    assert "src=" not in re.sub(r'src="data:', "", text)  # nothing from elsewhere


def test_tables_say_the_same(reports, folder):
    result, intervals = reports["a"].result, reports["a"].intervals
    auc = f"{100 * result.auc:.2f} [{100 * intervals.auc[0]:.2f}–{100 * intervals.auc[1]:.2f}]"
    lines = as_markdown(paper_table(reports)).splitlines()
    assert lines == (folder / "table.md").read_text().splitlines()
    assert auc in lines[2]
    assert "TAR@1e-1" in lines[0]
    assert "1e-5" not in lines[0]
    # An escaped bar is not a cell's end.
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert lines[3].count("not enough pairs") == lines[0].count("TAR@") + 2
    latex = as_latex(paper_table(reports), "percent")
    assert auc.replace("–", "--") in latex
    assert r"b\textbar{}\textless{}script\textgreater{}window.injected=true" in latex
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    assert f"{100 * result.eer:.2f} %" in text_table(reports)
