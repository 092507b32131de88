"""Real faces: the ORL photos from folder to verified model, by the commands of the README."""

import json
import shutil

import pytest
import yaml

from tests.commands import python, torchrun


@pytest.fixture(scope="module")
def orl(shared_data, tmp_path_factory):
    """Folders of people 1-30 and of people 31-40."""
    root = tmp_path_factory.mktemp("orl")
    for person in range(1, 41):
        part = "train" if person <= 30 else "unseen"
        shutil.copytree(shared_data / "orl" / f"s{person}", root / part / f"s{person}")
    return root


@pytest.mark.long
def test_orl(orl):
    made = python("tools/make_record.py", orl / "train", orl / "record", "--json", "-")
    assert made.returncode == 0, made.stderr
    assert python("tools/make_pairs.py", orl / "unseen", orl / "unseen.bin").returncode == 0
    config = {
        "run": {"folder": str(orl / "run"), "epochs": 60},
        "data": {"train": str(orl / "record" / "train.rec"), "batch_size": 24, "image_size": 56},
        "backbone": {"name": "tiny", "embedding_size": 64},
        "margin": {"name": "kappaface", "scale": 32},
        "optimizer": {"lr": 0.1, "warmup_epochs": 2},
        "evaluate": {"sets": {"orl": str(orl / "unseen.bin")}},
        "checkpoint": {"every": None},
        "log": {"tensorboard": False},
    }
    (orl / "config.yaml").write_text(yaml.safe_dump(config))
    trained = torchrun(2, "launch/train.py", orl / "config.yaml")
    assert trained.returncode == 0, trained.stderr
    summary = json.loads((orl / "run" / "summary.json").read_text())
    pixels = summary["baselines"]["pixels"]["orl"]
    assert summary["classes"] == 30
    assert summary["verification"]["orl"]["num_pairs"] == 900
    # Raw-pixel cosine at its best threshold on these 900 pairs, measured independently.
    assert pixels == pytest.approx(0.85, abs=0.01)
    assert summary["verification"]["orl"]["accuracy"] > pixels
