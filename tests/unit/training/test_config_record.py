"""config.yaml of a run folder: whole, readable as a configuration, with its history."""

import pytest

from kappaface_dist.config.file import load_config
from kappaface_dist.training.config_record import record_config
from kappaface_dist.training.problem import with_margin_defaults


@pytest.fixture
def config(tmp_path):
    (tmp_path / "given.yaml").write_text("run: {steps: 3}\ndata: {train: x.rec}\n")

    def _config(*overrides):
        return load_config(tmp_path / "given.yaml", list(overrides))

    return _config


def test_changes_stay_in_the_order_in_which_they_came(config, tmp_path):
    run = tmp_path / "run"
    for step, overrides in enumerate(
        ([], ["optimizer.lr=0.2"], ["optimizer.lr=0.2"], ["run.name=a: b # c", "margin.scale=32"])
    ):
        record_config(run, config(*overrides), step)
    lines = (run / "config.yaml").read_text().splitlines()
    history = [line for line in lines if line.startswith("#")]
    assert [line.partition(", at ")[2] for line in history] == [
        "step 1: optimizer.lr was 0.1 and is 0.2",
        "step 3: run.name was run and is a: b # c",
        "step 3: margin.scale was 64.0 and is 32",
        "step 3: optimizer.lr was 0.2 and is 0.1",
    ]
    expected = with_margin_defaults(config("run.name=a: b # c", "margin.scale=32"))
    assert load_config(run / "config.yaml") == expected
    assert [path.name for path in run.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("damage", [b"", b"run: [", b"\xff\xfe", b"run: {steps: nan}\n"])
def test_a_damaged_one_is_set_aside_and_made_again(config, tmp_path, caplog, damage):
    (tmp_path / "config.yaml").write_bytes(damage)
    record_config(tmp_path, config(), 7)
    assert "config.yaml cannot be read" in caplog.text
    assert (tmp_path / "config.yaml.damaged").read_bytes() == damage
    assert load_config(tmp_path / "config.yaml") == with_margin_defaults(config())
