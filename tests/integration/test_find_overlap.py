"""find_overlap.py on people who were planted: by numbers that do not come from it."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.evaluation.sets.pair_file import write_pairs
from kappaface_dist.models.embedder import load_embedder
from kappaface_dist.models.export import save_backbone
from tests.commands import ROOT, exit_line
from tests.unit.backbones.calibrated import calibrated_backbone

TOOL = "tools/find_overlap.py"
IN_TRAIN = range(40)
IN_TEST = range(28, 58)  # 12 of these 30 are in the training set
BOTH = sorted(set(IN_TRAIN) & set(IN_TEST))


def photo(person, number):
    look = np.random.default_rng(person).integers(0, 256, (8, 8, 3))
    noise = np.random.default_rng([person, number]).normal(0, 25, (8, 8, 3))
    pixels = np.clip(look + noise, 0, 255).astype(np.uint8)
    return encode_jpeg(pixels.repeat(4, 0).repeat(4, 1))


def write_folder(folder, people, numbers):
    for person in people:
        (folder / f"p{person:02}").mkdir(parents=True)
        for number in numbers:
            (folder / f"p{person:02}" / f"{number}.jpg").write_bytes(photo(person, number))


def run_tool(monkeypatch, capsys, *arguments, tool=TOOL):
    """What the tool writes with --json -; in this process, that is 3 s faster."""
    monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments), "--json", "-"])
    runpy.run_path(str(ROOT / tool), run_name="__main__")
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a training set, and the test set as pairs and as a folder."""
    root = tmp_path_factory.mktemp("overlap")
    model = calibrated_backbone("tiny", 32, 32)
    save_backbone(root / "x.safetensors", model, name="tiny", embedding_size=32, image_size=32)
    write_folder(root / "train", IN_TRAIN, range(3))
    write_folder(root / "test", IN_TEST, range(10, 13))
    rng = np.random.default_rng(0)
    pairs = [((p, 10), (p, 11)) for p in IN_TEST] + [((p, 11), (p, 12)) for p in IN_TEST]
    for a, b in rng.permutation([(a, b) for a in IN_TEST for b in IN_TEST if a < b])[:60].tolist():
        pairs.append(((a, int(rng.integers(10, 13))), (b, int(rng.integers(10, 13)))))
    payloads = [photo(*each) for pair in pairs for each in pair]
    same = [a[0] == b[0] for a, b in pairs]
    names = [(f"p{a[0]:02}", f"p{b[0]:02}") for a, b in pairs]
    write_pairs(root / "test.bin", payloads, same, names)
    return root, pairs, np.array(same)


def unit_rows(root, payloads):
    return load_embedder(root / "x.safetensors").embed(payloads).astype(np.float64)


def test_a_verification_set(place, monkeypatch, capsys, tmp_path):
    root, pairs, same = place
    out = tmp_path / "out"
    model = root / "x.safetensors"
    found = run_tool(
        monkeypatch, capsys, root / "train", root / "test.bin", "--model", model, "--out", out,
        "--bootstrap", 20,
    )  # fmt: skip
    expected = {f"p{p:02}" for p in BOTH}
    assert {(each["first_name"], each["second_name"]) for each in found["matched"]} == {
        (name, name) for name in expected
    }
    assert (found["second_people"], found["second_overlapping"]) == (30, 12)
    assert found["identities"] == "named"
    # The cosines are those of the mean embeddings, made here from the photos.
    images = {p: sorted({e for pair in pairs for e in pair if e[0] == p}) for p in IN_TEST}
    for each in found["matched"]:
        person = int(each["first_name"][1:])
        first = unit_rows(root, [photo(person, n) for n in range(3)])
        second = unit_rows(root, [photo(*image) for image in images[person]])
        a, b = first.sum(axis=0), second.sum(axis=0)
        assert each["cosine"] == pytest.approx(
            a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5
        )
        assert each["image_cosine"] == pytest.approx((first @ second.T).mean(), abs=1e-5)
        assert each["chance"] < 0.01
    # With and without those people, against scikit-learn.
    rows = unit_rows(root, [photo(*each) for pair in pairs for each in pair])
    cosine = (rows[::2] * rows[1::2]).sum(axis=1)
    kept = np.array([not {a[0], b[0]} & set(BOTH) for a, b in pairs])
    everybody, rest = found["verification"].values()
    assert list(found["verification"]) == ["all people", "without 12 people"]
    assert everybody["auc"] == pytest.approx(roc_auc_score(same, cosine), abs=1e-6)
    assert (rest["num_pairs"], rest["num_same"]) == (kept.sum(), (kept & same).sum())
    assert rest["auc"] == pytest.approx(roc_auc_score(same[kept], cosine[kept]), abs=1e-6)
    assert rest["intervals"]["resampled_identities"] == 18
    page = (out / "report.html").read_text()
    assert "12 of the test set&#39;s 30 people (40.0%) are in the training set" in page
    assert page.count("<figure>") >= 12
    assert (out / "verification" / "report.html").is_file()
    # The map's first two columns are what read_identity_map takes; the drop list is converted with.
    lines = (out / "identity_map.tsv").read_text().splitlines()[1:]
    assert sorted(int(line.split("\t")[0]) for line in lines) == BOTH
    done = run_tool(
        monkeypatch, capsys, root / "train", tmp_path / "rest.rec", "--drop",
        out / "drop_train.tsv", tool="tools/convert_record.py",
    )  # fmt: skip
    assert done["num_images"] == 3 * 28
    left = open_catalog(tmp_path / "rest.rec")
    assert list(left.class_names) == [f"p{p:02}" for p in IN_TRAIN if p not in BOTH]


def test_datasets_without_overlap_and_bad_photos(place, monkeypatch, capsys, tmp_path):
    root, *_ = place
    write_folder(tmp_path / "others", range(100, 130), range(3))
    (tmp_path / "others" / "p100" / "0.jpg").write_bytes(b"broken")
    arguments = [root / "train", tmp_path / "others", "--model", root / "x.safetensors"]
    arguments += ["--out", tmp_path / "out"]
    found = run_tool(monkeypatch, capsys, *arguments)
    assert found["matched"] == []
    assert found["false_match_rate"] == 0
    assert [each["image"] for each in found["unreadable"]] == [
        str(tmp_path / "others" / "p100" / "0.jpg")
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Nobody of the test set&#39;s 30 people is found in the training set." in page
    assert "Nobody is claimed." in page
    with pytest.raises(SystemExit) as stopped:
        run_tool(
            monkeypatch, capsys, root / "train", tmp_path / "x.rec",
            "--drop", tmp_path / "out" / "drop_train.tsv", tool="tools/convert_record.py",
        )  # fmt: skip
    assert "names no class to leave out" in stopped.value.code


def test_one_set_with_people_twice(place, monkeypatch, capsys, tmp_path):
    root, *_ = place
    write_folder(tmp_path / "train", IN_TRAIN, range(3))
    for person in (3, 17):
        twin = tmp_path / "train" / f"z{person:02}"
        twin.mkdir()
        for number in range(20, 24):  # one photo more: the first class goes
            (twin / f"{number}.jpg").write_bytes(photo(person, number))
    found = run_tool(
        monkeypatch, capsys, tmp_path / "train", "--model", root / "x.safetensors",
        "--out", tmp_path / "out", "--images-each", 2,
    )  # fmt: skip
    pairs = {tuple(sorted((e["first_name"], e["second_name"]))) for e in found["matched"]}
    assert pairs == {("p03", "z03"), ("p17", "z17")}
    assert found["images_looked_at"] == {"train": 84}
    listed = (tmp_path / "out" / "drop.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[0] for line in listed] == ["3", "17"]


def test_mistakes_are_one_sentence(place, tmp_path):
    root, *_ = place
    model = ["--model", root / "x.safetensors", "--out", tmp_path / "out"]
    assert "expected a share between 0 and 1" in exit_line(
        TOOL, root / "train", *model, "--false-share=0"
    )
    assert "name a dataset before it" in exit_line(TOOL, root / "test.bin", *model)
    assert "there is no dataset at" in exit_line(TOOL, tmp_path / "none", *model)
    write_folder(tmp_path / "few", range(5), range(2))
    assert "there are 5 people to search among" in exit_line(
        TOOL, tmp_path / "few", root / "test.bin", *model
    )
    drop = tmp_path / "drop.tsv"
    convert = ["tools/convert_record.py", root / "train", tmp_path / "a.rec", "--drop", drop]
    for text, message in (
        ("p07\n", "line 1 is 'p07': expected the label of a class"),
        ("400 p07\n", "no image has the label 400 that is to be dropped"),
    ):
        Path(drop).write_text(text)
        assert message in exit_line(*convert)
