"""A finished training is kept, whatever its sets are called and whatever is in them."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from kappaface_dist.config.file import load_config
from kappaface_dist.evaluation.sets.pair_file import read_pairs, write_pairs
from kappaface_dist.training.build import build_job
from kappaface_dist.training.summary import summary_table, write_report
from kappaface_dist.training.trainer import Trainer

HOSTILE = [r"lfw $\alpha_{$", "n" * 300, "two lines | <b>"]


def finish(config_file):
    """Train, and write what a run leaves behind; the run folder and the summary."""
    config = load_config(config_file)
    config.folder.mkdir(parents=True, exist_ok=True)
    job = build_job(config, torch.device("cpu"))
    trainer = Trainer(job)
    assert trainer.fit()
    state = trainer.state
    summary = write_report(
        job,
        trainer.results,
        steps=state.step,
        images_seen=state.position,
        seconds=state.seconds,
        loss=state.last_loss,
    )
    written = json.loads((config.folder / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    return config.folder, summary


def bomb():
    """A PNG of a few bytes that claims 3.6 thousand million pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    payload = bytearray(buffer.getvalue())
    payload[16:24] = (60000).to_bytes(4, "big") * 2
    return bytes(payload)


def test_names_and_bombs_do_not_end_a_run(write_config, faces, tmp_path):
    pairs = read_pairs(faces / "unseen.bin")
    payloads, same = pairs.payloads[:80], pairs.same_P[:40]
    write_pairs(tmp_path / "good.bin", payloads, same)
    write_pairs(tmp_path / "bomb.bin", [*payloads[:5], bomb(), *payloads[6:]], same)
    sets = dict.fromkeys(HOSTILE, str(tmp_path / "good.bin"))
    sets["bomb"] = str(tmp_path / "bomb.bin")
    folder, summary = finish(write_config(run={"steps": 2}, evaluate={"sets": sets}))
    assert summary["problems"] == []
    accuracy = {name: result["accuracy"] for name, result in summary["verification"].items()}
    assert len({accuracy[name] for name in HOSTILE}) == 1
    assert accuracy[HOSTILE[0]] is not None
    assert accuracy["bomb"] is None
    note = summary["verification"]["bomb"]["note"]
    assert note.startswith("not evaluated: image 2 of pair 2: not a readable image")
    text = summary_table(summary)
    assert note in text
    assert len(text.splitlines()) == 2 + len(sets)
    assert note in (folder / "verification" / "report.html").read_text()
    plots = [path.name for path in (folder / "verification" / "plots").iterdir()]
    assert len(plots) == 3 + len(HOSTILE)
    assert (folder / "plots" / "roc.png").stat().st_size > 10_000
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("name", ["plots", "verification"])
def test_a_report_that_cannot_be_written_is_said(write_config, faces, tmp_path, name, caplog):
    path = write_config(run={"steps": 2}, evaluate={"sets": {"unseen": str(faces / "unseen.bin")}})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("a file is in the way")
    folder, summary = finish(path)
    (problem,) = summary["problems"]
    assert "could not be written" in problem
    assert str(tmp_path / "run" / name) in problem
    assert problem in summary_table(summary)
    assert "the run is finished without it" in caplog.text
    assert (folder / "export" / "backbone.safetensors").is_file()
    other = {"plots": "verification/report.html", "verification": "plots/loss.png"}[name]
    assert (folder / other).is_file()
    assert np.isfinite(summary["verification"]["unseen"]["accuracy"])
