"""The report on an identification test as a browser shows it, against the numbers of the JSON."""

import json

import numpy as np
import pytest

from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.evaluation.one_to_many.faces import identify_faces
from kappaface_dist.evaluation.reports.identification import write_identification_report
from kappaface_dist.evaluation.sets.face_lists import FaceList
from tests.browser import look_at

HOSTILE = "<script>window.injected=true</script>"


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """10 people with 3 probes, 8 of them in the gallery, and 30 distractors; colours as pixels."""
    root = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    lists, embedded = {}, {}
    for kind, people, count in (("probes", 10, 3), ("gallery", 8, 1), ("distractors", 30, 1)):
        paths, names, rows = [], [], []
        for person in range(people):
            own = np.random.default_rng(person + 100 * (kind == "distractors")).normal(size=8)
            for number in range(count):
                path = root / kind / f"{person}_{number}.jpg"
                path.parent.mkdir(exist_ok=True)
                pixels = np.broadcast_to(rng.integers(0, 256, 3), (24, 24, 3)).astype(np.uint8)
                path.write_bytes(encode_jpeg(pixels))
                paths.append(path)
                name = HOSTILE if person == 0 else f"p{person}"
                names.append(None if kind == "distractors" else name)
                rows.append(own + rng.normal(0, 0.6, 8))
        lists[kind] = FaceList(paths, names)
        row_XD = np.array(rows, dtype=np.float32)
        embedded[kind] = row_XD / np.linalg.norm(row_XD, axis=1, keepdims=True)
    return lists, embedded


def chosen(faces, *kinds):
    lists, embedded = faces
    return {k: lists[k] for k in kinds}, {k: embedded[k] for k in kinds}


def write(folder, result):
    return write_identification_report(
        folder, result, name="x", title="Identification", facts={"probes": "p"}, config=None
    )


@pytest.mark.parametrize("protocol", ["tinyface", "megaface"])
def test_a_browser_shows_what_goes_to_json(faces, protocol, tmp_path):
    kinds = {
        "tinyface": ("probes", "gallery", "distractors"),
        "megaface": ("probes", "distractors"),
    }
    result = identify_faces(*chosen(faces, *kinds[protocol]), num_replicates=40)
    found = look_at(write(tmp_path, result), tmp_path, drawn=True)
    summary = json.loads(json.dumps(result.summary))
    bounds = summary["intervals"]
    cells = [
        f"{100 * share:.2f} [{100 * bounds[key][name][0]:.2f}–{100 * bounds[key][name][1]:.2f}]"
        for key in ("rank", "tpir_at_fpir")
        for name, share in summary.get(key, {}).items()
        if share is not None
    ]
    assert found["rows"][1] == ["x", *cells]
    assert len(cells) == (5 if protocol == "tinyface" else 4)
    plots = {"cmc", "scores"} | ({"identification_det"} if protocol == "tinyface" else set())
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == plots
    assert len(result.wrong) > 2
    assert len(result.lost) == 12
    assert len(found["images"]) == len(plots) + 2 * (len(result.wrong) + 12)
    assert HOSTILE in found["text"]
    assert f"{len(result.outcome.rank_E)} searches for a mate" in found["text"]


def test_the_pictures_are_those_of_the_scores(faces):
    lists, embedded = chosen(faces, "probes", "gallery", "distractors")
    result = identify_faces(lists, embedded, num_replicates=0)
    assert result.summary["intervals"] is None
    entries = np.concatenate([embedded["gallery"], embedded["distractors"]])
    paths = lists["gallery"].paths + lists["distractors"].paths
    names = lists["gallery"].names + lists["distractors"].names
    score = embedded["probes"] @ entries.T
    best = score.argmax(axis=1)
    wrong = [q for q in range(30) if names[best[q]] != lists["probes"].names[q]]
    wrong.sort(key=lambda q: -score[q].max())
    expected = [(lists["probes"].paths[q], paths[best[q]], names[best[q]]) for q in wrong[:12]]
    assert [(h.probe, h.entry, h.entry_name) for h in result.wrong] == expected
    worst = max(
        (int(np.sum(score[q] >= score[q, m])), -score[q, m], q, m)
        for q in range(30)
        for m in range(8)
        if names[m] == lists["probes"].names[q]
    )
    assert (result.lost[0].probe, result.lost[0].entry) == (
        lists["probes"].paths[worst[2]], paths[worst[3]]
    )  # fmt: skip
    assert result.lost[0].hit.rank == worst[0]
    mega = identify_faces(*chosen(faces, "probes", "distractors"), num_replicates=0)
    score = embedded["probes"] @ embedded["distractors"].T
    top = mega.wrong[0]
    assert top.hit.score == pytest.approx(score[top.hit.query].max(), abs=1e-6)
    assert top.entry == lists["distractors"].paths[score[top.hit.query].argmax()]
    assert all(h.probe != h.entry and h.probe_name == h.entry_name for h in mega.lost)


def test_a_picture_that_is_gone_is_told(faces, tmp_path):
    lists, embedded = chosen(faces, "probes", "gallery")
    gone = {
        k: FaceList([p.with_suffix(".gone") for p in f.paths], f.names) for k, f in lists.items()
    }
    result = identify_faces(gone, embedded, num_replicates=10)
    found = look_at(write(tmp_path, result), tmp_path)
    assert found["missing"] == 2 * (len(result.wrong) + len(result.lost))
    assert [caption for caption, _ in found["images"]] == [
        "Rank-k of mated searches", "Missed mates over false alarms", "Scores"
    ]  # fmt: skip


@pytest.mark.parametrize("kinds", [("probes", "gallery"), ("probes", "distractors")])
def test_nobody_to_find_is_said(faces, kinds, tmp_path):
    lists, embedded = chosen(faces, *kinds)
    probes = lists["probes"]
    lists["probes"] = FaceList(probes.paths, [f"nobody {n}" for n in range(len(probes.paths))])
    result = identify_faces(lists, embedded, num_replicates=10)
    assert result.intervals is None
    found = look_at(write(tmp_path, result), tmp_path)
    assert "No probe has a mate: there is no rank to measure, nor a curve." in found["text"]
    assert found["rows"][1] == ["x", *["no mates"] * 4]
    assert "nan" not in found["text"].lower()
    assert not (tmp_path / "plots" / "cmc.png").exists()


def test_lists_are_told_apart_by_their_digest(faces, tmp_path):
    probes = faces[0]["probes"]
    moved = FaceList([tmp_path / p.parent.name / p.name for p in probes.paths], probes.names)
    assert moved.digest() == probes.digest()
    assert FaceList(probes.paths[::-1], probes.names).digest() != probes.digest()
    assert FaceList(probes.paths, probes.names[::-1]).digest() != probes.digest()
