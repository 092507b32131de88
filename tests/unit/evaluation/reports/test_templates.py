"""The report on a template benchmark as a browser shows it, against the numbers that go to JSON."""

import csv
import dataclasses
import html
import json
import re

import numpy as np
import pytest
import torch

from kappaface_dist.evaluation.reports.templates import write_template_report
from kappaface_dist.evaluation.sets.template_lists import read_template_set
from kappaface_dist.evaluation.templates.benchmark import (
    embed_template_images,
    evaluate_templates,
    template_identities,
)
from kappaface_dist.evaluation.templates.pooling import Pooling
from kappaface_dist.made_up_faces.templates import write_template_set
from tests.browser import look_at
from tests.unit.backbones.calibrated import calibrated_backbone

FACTS = {"model": "x.safetensors"}


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    write_template_set(root, name="t<b>", num_identities=8, seed=0)
    return read_template_set(root)


@pytest.fixture(scope="module")
def stored(templates, tmp_path_factory):
    return embed_template_images(
        calibrated_backbone("tiny", 16, 32),
        templates,
        tmp_path_factory.mktemp("cache"),
        digest="0" * 64,
        image_size=32,
        batch_size=32,
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="module")
def result(stored, templates):
    return evaluate_templates(stored, templates, Pooling(), num_replicates=40)


def write(folder, result, templates):
    return write_template_report(
        folder, result, templates, title="t by <tiny>", facts=FACTS, config={"run": {"name": "x"}}
    )


def cell(numbers, bounds):
    return f"{100 * numbers:.2f} [{100 * bounds[0]:.2f}–{100 * bounds[1]:.2f}]"


def test_a_browser_shows_what_goes_to_json(result, templates, tmp_path):
    page = write(tmp_path, result, templates)
    summary = json.loads(json.dumps(result.summary))
    found = look_at(page, tmp_path, drawn=True)
    # ROC, DET, histogram, CMC, DET, histogram; 12 pairs in each of four lists, or all there are.
    joined = result.galleries["joined"].found
    wrong = np.sum(joined.other_Q >= joined.mate_Q)
    assert wrong > 0
    assert len(found["images"]) == 6 + 2 * (12 + 12 + min(12, wrong) + 12)
    rows = {row[0]: row for row in found["rows"]}
    one, bounds = summary["1:1"], summary["1:1"]["intervals"]
    assert rows["t<b>"][1:5] == [
        "128", "16", cell(one["auc"], bounds["auc"]), cell(one["eer"], bounds["eer"])
    ]  # fmt: skip
    tar = [
        cell(rate, bounds["tar_at_far"][name])
        for name, rate in one["tar_at_far"].items()
        if rate is not None
    ]
    assert rows["t<b>"][5:] == tar
    assert rows.keys() == {"set", "t<b>", "gallery", "G1", "G2", "average", "joined"}
    for name in ("G1", "G2", "average", "joined"):
        numbers, bounds = summary["1:N"][name], summary["1:N"][name]["intervals"]
        ranks = [cell(numbers["rank"][k], bounds["rank"][k]) for k in ("1", "5", "10", "20")]
        assert rows[name][1:5] == ranks
    assert len(rows["joined"]) == 6  # TPIR at 1e-1, for which 16 probes are enough
    assert rows["G1"][5] == "not enough searches"  # 8 without a mate
    for text in ("x.safetensors", "name: x", "t by <tiny>", "intervals over subjects"):
        assert text in found["text"]
    markdown, latex = (tmp_path / "table.md").read_text(), (tmp_path / "table.tex").read_text()
    for row in found["rows"]:
        assert " | ".join(row) in html.unescape(markdown)
        for each in row[1:]:
            assert each.replace("–", "--") in latex
    names = {"roc", "det", "scores", "cmc", "identification_det", "identification_scores"}
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == names


def test_hardest_pairs_are_those_of_all_scores(result, templates, tmp_path):
    text = write(tmp_path, result, templates).read_text()
    hardest = np.flatnonzero(~templates.same_P)
    hardest = min(hardest, key=lambda p: (-result.cosine_P[p], p))
    first, second = templates.pair_P2[hardest]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL)
    assert captions[0] == f"templates {first} and {second}\ncosine {result.cosine_P[hardest]:.3f}"
    # The picture of a template is that which the detector is surest of.
    lines = (templates.folder.parent / "meta/t<b>_name_5pts_score.txt").read_text().splitlines()
    score = {line.split()[0]: float(line.split()[-1]) for line in lines}
    lines = (templates.folder.parent / "meta/t<b>_face_tid_mid.txt").read_text().splitlines()
    own = [line.split()[0] for line in lines if int(line.split()[1]) == first]
    assert f"template {first}, {max(own, key=score.get)}, one of {len(own)}" in text


def test_a_picture_that_is_gone_is_told(result, templates, tmp_path):
    (tmp_path / "empty").mkdir()
    gone = dataclasses.replace(templates, folder=tmp_path / "empty")
    found = look_at(write(tmp_path / "report", result, gone), tmp_path)
    assert len(found["images"]) == 6
    assert found["missing"] >= 2 * (12 + 12 + 12)
    assert "not readable" in found["text"]
    assert "No such file" in (tmp_path / "report" / "report.html").read_text()


def test_a_set_of_one_person_has_no_curve_and_says_so(stored, templates, tmp_path):
    alone = dataclasses.replace(
        templates,
        pair_P2=templates.pair_P2[templates.same_P][:1],
        same_P=np.array([True]),
        galleries={},
        probes=None,
    )
    result = evaluate_templates(stored, alone, Pooling(), num_replicates=40)
    assert result.summary["1:1"]["intervals"] is None
    found = look_at(write(tmp_path, result, alone), tmp_path)
    assert "All 1 pairs are of the same person: no rate can be measured" in found["text"]
    assert found["rows"] == [["set", "pairs", "same"], ["t<b>", "1", "1"]]
    assert [path.stem for path in (tmp_path / "plots").glob("*.png")] == ["scores"]
    assert "nan" not in found["text"].lower()


def test_templates_of_one_person_are_known_from_lists_and_pairs(templates):
    number_T = np.unique(templates.template_I)
    subject = {}
    for path in (templates.folder.parent / "meta").glob("*.csv"):
        with path.open() as file:
            subject |= {int(r["TEMPLATE_ID"]): r["SUBJECT_ID"] for r in csv.DictReader(file)}
    expected = [subject[number] for number in number_T.tolist()]
    unlisted = dataclasses.replace(templates, galleries={}, probes=None)
    unpaired = dataclasses.replace(templates, same_P=np.zeros_like(templates.same_P))
    # Each source alone is enough here: every probe is in a same pair.
    for each in (templates, unlisted, unpaired):
        identity_T = template_identities(number_T, each).tolist()
        assert len(set(zip(identity_T, expected, strict=True))) == len(set(expected)) == 8
        assert max(identity_T) == 7
