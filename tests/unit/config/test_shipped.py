"""Configurations of the package by name, from any folder."""

from pathlib import Path

import pytest

from kappaface_dist.config.file import load_config
from kappaface_dist.config.shipped import shipped_config, shipped_folder
from tests.commands import ROOT


def test_folders_of_the_source_tree():
    assert shipped_folder("tools") == ROOT / "tools"


def test_a_configuration_is_found_from_any_folder(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/glint360k.yaml").backbone.name == "r100"
    assert caplog.messages == [
        f"configs/glint360k.yaml is not here: the package's own is taken, "
        f"{ROOT / 'configs/glint360k.yaml'}"
    ]


def test_it_can_be_extended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("extends: configs/margins/kappaface_paper.yaml\n")
    config = load_config("mine.yaml", ["data.train=x", "run.steps=1"])
    assert config.margin["concentration_share"] == 0.3


def test_ones_own_file_comes_first(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/glint360k.yaml").write_text("run: {name: mine, steps: 1}\ndata: {train: x}\n")
    assert load_config("configs/glint360k.yaml").run.name == "mine"
    assert not caplog.messages


@pytest.mark.parametrize(
    "name", ["configs", "configs/none.yaml", "glint360k.yaml", "configs/../setup.py"]
)
def test_what_is_no_configuration_of_ours_is_not_made_one(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped_config(Path(name)) is None
    with pytest.raises(ValueError, match="cannot be read"):
        load_config(name)
