"""make_templates.py and evaluate_templates.py, against an evaluation in plain numpy."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from kappaface_dist.backbones import build_backbone
from kappaface_dist.data.align import align_face
from kappaface_dist.data.images import decode_image, decode_picture, encode_jpeg
from kappaface_dist.models.export import save_backbone
from tests.integration.test_verification_tools import TORCHRUN, start


def slow_templates(root, model):
    """template -> unit embedding, by the text of the field's protocol, line by line."""
    tid = [line.split() for line in (root / "meta/t_face_tid_mid.txt").read_text().splitlines()]
    pts = [line.split() for line in (root / "meta/t_name_5pts_score.txt").read_text().splitlines()]
    media = {}
    for (name, template, medium), (again, *numbers) in zip(tid, pts, strict=True):
        assert name == again
        points = np.array(numbers[:10], dtype=np.float32).reshape(5, 2)
        pixels = align_face(decode_picture((root / "loose_crop" / name).read_bytes()), points, 32)
        image = torch.from_numpy((pixels.astype(np.float32) - 127.5) / 127.5).permute(2, 0, 1)[None]
        with torch.no_grad():
            vector = (model(image) + model(image.flip(3)))[0].double().numpy()
        media.setdefault(int(template), {}).setdefault(medium, []).append(
            vector * float(numbers[10])
        )
    sums = {t: sum(np.mean(v, axis=0) for v in groups.values()) for t, groups in media.items()}
    return {t: total / np.linalg.norm(total) for t, total in sums.items()}


def read_csv(path):
    with path.open() as file:
        return {int(row["TEMPLATE_ID"]): int(row["SUBJECT_ID"]) for row in csv.DictReader(file)}


def undated(path):
    """Text of a report without the minute in which it was written: two reports may fall on two."""
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "DATE", path.read_text())


def test_a_set_is_made_and_evaluated(tmp_path):
    made = start("tools/make_templates.py", tmp_path / "set", "--people=12", "--name=t", "--json=-")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["images"] == 132
    torch.manual_seed(0)
    model = build_backbone("tiny", embedding_size=16, image_size=32)
    exported = tmp_path / "backbone.safetensors"
    save_backbone(exported, model, name="tiny", embedding_size=16, image_size=32)
    command = ["tools/evaluate_templates.py", exported, tmp_path / "set"]
    one = start(
        *command,
        "--json",
        tmp_path / "1.json",
        "--cache",
        tmp_path / "a",
        "--plot",
        tmp_path / "roc.png",
        "--report",
        tmp_path / "report",
    )
    two = start(
        *TORCHRUN, *command, "--json", tmp_path / "2.json", "--cache", tmp_path / "b",
        "--report", tmp_path / "report2",
    )  # fmt: skip
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert (tmp_path / "1.json").read_text() == (tmp_path / "2.json").read_text()
    assert f"report: {tmp_path / 'report' / 'report.html'}" in one.stdout
    assert one.stdout == two.stdout.replace("report2", "report")
    for name in ("report.html", "table.md", "table.tex"):
        assert undated(tmp_path / "report" / name) == undated(tmp_path / "report2" / name)
    assert (tmp_path / "roc.png").stat().st_size > 1000
    again = start(*command, "--cache", tmp_path / "a", "--no-norm")
    assert "132 of 132 embeddings were there already" in again.stdout, again.stderr
    exported.with_suffix(".txt").write_text("")
    refused = start(*command, "--report", exported.with_suffix(".txt"))
    assert (refused.returncode, "which is a file: name a folder" in refused.stderr) == (1, True)

    found = json.loads((tmp_path / "1.json").read_text())
    embedding = slow_templates(tmp_path / "set", model.eval())
    lines = (tmp_path / "set/meta/t_template_pair_label.txt").read_text().splitlines()
    pairs = [tuple(map(int, line.split())) for line in lines]
    scores = np.array([embedding[a] @ embedding[b] for a, b, _ in pairs])
    same = np.array([label == 1 for *_, label in pairs])
    assert found["1:1"]["auc"] == pytest.approx(roc_auc_score(same, scores), abs=1e-3)
    best = max(np.mean(scores[same] >= t) for t in scores if np.mean(scores[~same] >= t) <= 0.1)
    # A pair on the edge may fall to the other side by float32 rounding: one pair of 24.
    assert found["1:1"]["tar_at_far"]["1e-1"] == pytest.approx(best, abs=1.01 / same.sum())
    probes = read_csv(tmp_path / "set/meta/t_1N_probe_mixed.csv")
    for name in ("G1", "G2"):
        gallery = read_csv(tmp_path / f"set/meta/t_1N_gallery_{name}.csv")
        ranks, alarms = [], []
        for probe, subject in probes.items():
            score = {g: embedding[probe] @ embedding[g] for g in gallery}
            mates = [g for g in gallery if gallery[g] == subject]
            if mates:
                best = max(score[g] for g in mates)
                ranks.append(1 + sum(score[g] >= best for g in gallery if g not in mates))
            else:
                alarms.append(max(score.values()))
        numbers = found["1:N"][name]
        assert (numbers["mated_probes"], numbers["false_alarm_searches"]) == (12, 12)
        assert numbers["rank"]["1"] == pytest.approx(np.mean(np.array(ranks) <= 1), abs=0.1)
        assert numbers["rank"]["5"] == pytest.approx(np.mean(np.array(ranks) <= 5), abs=0.1)


def test_mistakes_end_with_one_line(tmp_path):
    torch.manual_seed(0)
    model = build_backbone("tiny", embedding_size=16, image_size=32)
    exported = tmp_path / "backbone.safetensors"
    save_backbone(exported, model, name="tiny", embedding_size=16, image_size=32)
    ended = start("tools/evaluate_templates.py", exported, tmp_path)
    assert ended.returncode == 1
    assert "has 0 files *_face_tid_mid.txt" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_identify_with_and_without_a_gallery(tmp_path):
    rng = np.random.default_rng(0)
    lists = {"path": [], "id": []}
    for kind, people, count in (("probe", 6, 2), ("gallery", 5, 1), ("others", 8, 2)):
        for person in range(people):
            folder = tmp_path / kind / (f"x{person}" if kind == "others" else f"p{person}")
            folder.mkdir(parents=True)
            colour = np.random.default_rng(person + 100 * (kind == "others")).integers(0, 256, 3)
            for number in range(count):
                pixels = np.clip(colour + rng.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
                (folder / f"{number}.jpg").write_bytes(encode_jpeg(pixels))
                if kind == "probe":
                    lists["path"].append(f"p{person}/{number}.jpg")
                    lists["id"].append(f"p{person}")
    (tmp_path / "probes.json").write_text(json.dumps(lists))
    torch.manual_seed(0)
    model = build_backbone("tiny", embedding_size=16, image_size=32)
    exported = tmp_path / "backbone.safetensors"
    save_backbone(exported, model, name="tiny", embedding_size=16, image_size=32)
    command = ["tools/identify.py", exported, "--cache", tmp_path / "cache", "--json=-"]
    command += ["--distractors", tmp_path / "others"]
    model.eval()

    def embedding(path):
        image = torch.from_numpy((decode_image(path.read_bytes(), 32) - 127.5) / 127.5)
        image = image.float().permute(2, 0, 1)[None]
        with torch.no_grad():
            vector = (model(image) + model(image.flip(3)))[0].double().numpy()
        return vector / np.linalg.norm(vector)

    probe, gallery, others = (
        {path: embedding(path) for path in sorted((tmp_path / kind).glob("*/*.jpg"))}
        for kind in ("probe", "gallery", "others")
    )
    tiny = start(
        *command, "--probes", tmp_path / "probe", "--gallery", tmp_path / "gallery",
        "--report", tmp_path / "report",
    )  # fmt: skip
    assert tiny.returncode == 0, tiny.stderr
    ranks = []
    for path, vector in probe.items():
        entries = [(each.parent.name, vector @ v) for each, v in (gallery | others).items()]
        mates = [score for name, score in entries if name == path.parent.name]
        if mates:
            ranks.append(
                1 + sum(s >= max(mates) for name, s in entries if name != path.parent.name)
            )
    found = json.loads(tiny.stdout)
    assert found["mated_probes"] == len(ranks) == 10
    assert found["rank"]["1"] == pytest.approx(np.mean(np.array(ranks) <= 1))
    assert found["rank"]["5"] == pytest.approx(np.mean(np.array(ranks) <= 5))
    low, high = found["intervals"]["rank"]["1"]
    assert low <= found["rank"]["1"] <= high
    page = (tmp_path / "report" / "report.html").read_text()
    assert found["weights_sha256"] in page
    assert (
        f"{100 * found['rank']['1']:.2f} [{100 * low:.2f}–{100 * high:.2f}]"
        in (tmp_path / "report" / "table.md").read_text()
    )

    mega = start(
        *command, "--probes", tmp_path / "probes.json", "--probes-root", tmp_path / "probe"
    )
    assert mega.returncode == 0, mega.stderr
    ranks = [
        1 + sum(v @ each >= v @ w for each in others.values())
        for path, v in probe.items()
        for other, w in probe.items()
        if other != path and other.parent == path.parent
    ]
    found = json.loads(mega.stdout)
    assert found["searches"] == len(ranks) == 12
    assert found["rank"]["1"] == pytest.approx(np.mean(np.array(ranks) <= 1))

    for options, message in (
        (["--probes", tmp_path / "none"], "there is no folder"),
        (["--probes", exported.with_suffix(".json")], "there is no file"),
    ):
        ended = start(*command, *options)
        assert (ended.returncode, message in ended.stderr) == (1, True), ended.stderr
