"""The configurations that ship: they load, and their first line is the command that runs them."""

from pathlib import Path

import pytest

from kappaface_dist.config.file import load_config
from kappaface_dist.head import build_margin

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config(path):
    config = load_config(path)
    build_margin(**config.margin)
    assert config.run.name == path.stem
    first_line = path.read_text().splitlines()[0]
    assert first_line.startswith("# torchrun ")
    assert f"launch/train.py configs/{path.name}" in first_line


def test_the_real_ones_differ_only_where_they_say():
    ms1mv3, glint = (load_config(ROOT / f"configs/{n}.yaml") for n in ("ms1mv3_r50", "glint360k"))
    assert glint.optimizer == ms1mv3.optimizer
    assert (ms1mv3.backbone.name, glint.backbone.name) == ("r50", "r100")
