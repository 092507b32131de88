"""Nothing damaged is used: every bit that is read of a checkpoint, and the files beside it."""

import json
import random

import pytest
import torch

from kappaface_dist.checkpoint.folder import CHECKSUMS
from kappaface_dist.checkpoint.tensors import load_alone, stored_tensors
from kappaface_dist.models.saved_model import open_model
from kappaface_dist.training.metrics_file import read_metrics
from tests.commands import exit_line, python
from tests.integration.test_training import fit
from tests.processes import run_on_ranks

NUM_FLIPS = 40


@pytest.fixture
def checkpoint(write_config, tmp_path):
    """The last checkpoint of a run on two ranks."""
    run_on_ranks(2, fit, write_config(run={"steps": 2}))
    (tmp_path / "run" / "config.yaml").write_bytes((tmp_path / "config.yaml").read_bytes())
    return tmp_path / "run" / "checkpoints" / "step_00000002"


def test_no_flipped_bit_changes_a_model_in_silence(checkpoint):
    chance = random.Random(3)
    digest = open_model(checkpoint).digest
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    assert len(files) == 5
    refused = 0
    for number in range(NUM_FLIPS):
        path = files[number % len(files)]
        whole = path.read_bytes()
        content = bytearray(whole)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        try:
            assert open_model(checkpoint).digest == digest
        except ValueError as error:
            refused += 1
            message = str(error)
            assert str(checkpoint) in message
            assert "\n" not in message
        path.write_bytes(whole)
    # All but those in the other rank's shard, which a backbone does not need, and in its checksum.
    assert refused >= 0.7 * NUM_FLIPS
    # Who reads the shard finds it.
    shard = checkpoint / "__1_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    weight = {"head.weight": torch.empty(stored_tensors(checkpoint)["head.weight"][0])}
    with pytest.raises(ValueError, match=r"__1_0\.distcp does not have its checksum"):
        load_alone(checkpoint, weight)


def test_a_checkpoint_without_checksums_says_so_and_a_cut_one_is_a_sentence(checkpoint, caplog):
    whole = open_model(checkpoint).digest
    (checkpoint / CHECKSUMS).unlink()
    assert open_model(checkpoint).digest == whole
    assert "has no SHA256SUMS: its files are used unchecked" in caplog.text
    shard = checkpoint / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot be read on rank 0") as caught:
        open_model(checkpoint)
    assert "\n" not in str(caught.value)
    shard.unlink()
    with pytest.raises(ValueError, match="cannot be read on rank 0"):
        open_model(checkpoint)


def test_the_files_beside_it_name_themselves_and_are_made_again(write_config, tmp_path):
    path, run = write_config(run={"steps": 2}), tmp_path / "run"
    assert python("launch/train.py", path).returncode == 0
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text("{")
    line = exit_line("tools/export.py", run, tmp_path / "out", "--formats", "safetensors")
    assert f"{run}/summary.json is damaged" in line
    lines = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(b'\xff{"step": 1}\n[3]\n' + lines)
    (run / "config.yaml").write_text("run: [")
    done = python("launch/train.py", path)
    assert done.returncode == 0, done.stderr
    assert f"{run}/summary.json is damaged" in done.stderr
    assert "metrics.jsonl: 2 lines are damaged and left out, the first of them" in done.stderr
    assert f"{run}/config.yaml cannot be read" in done.stderr
    again = json.loads((run / "summary.json").read_text())
    assert again["steps"] == summary["steps"]
    assert again["loss"] == summary["loss"]
    assert (run / "metrics.jsonl.damaged").is_file()
    assert {line["step"] for line in read_metrics(run / "metrics.jsonl")} == {1, 2}
