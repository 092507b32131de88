"""tools/plan.py and tools/rehearse.py, as they are called."""

import json

from tests.commands import exit_line, python
from tests.unit.data.made_records import write_records


def test_the_commands(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("run: {epochs: 1}\ndata: {train: nowhere.rec}\nbackbone: {name: tiny}\n")
    small = ["data.batch_size=4", "data.image_size=32", "backbone.embedding_size=16"]
    done = python("tools/plan.py", config, *small, "--gpus", 4, "--classes", "2e6", "--gpu", "a100",
                  "--json", "-")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["total_memory_bytes"] == sum(report["memory_bytes"].values())
    assert report["fits"] is True
    assert report["largest_num_classes"] > 2e6
    assert report["step_seconds"].keys() >= {"backbone", "head", "communication", "optimizer"}
    assert sum(report["collective_bytes_per_step"].values()) > 0
    unknown = python("tools/plan.py", config)
    assert unknown.returncode == 1
    assert "give --classes and --images" in unknown.stderr
    two = ("data.train={a: {path: x, share: 0.5}, b: {path: x, share: 0.5}}", "--classes", 900)
    done = python("tools/rehearse.py", config, *small, "--ranks", 16, *two, "--classes", 100)
    assert done.returncode == 0, done.stderr
    assert "4 collectives a step, as planned" in done.stdout


def test_data_that_is_counted_and_data_that_is_not(tmp_path):
    """Files in a list are; an address is not fetched for it, and its secrets are not told."""
    config = tmp_path / "config.yaml"
    config.write_text("data: {train: nowhere.rec}\nrun: {steps: 10}\n")
    for number in range(2):
        write_records(tmp_path / f"{number}.rec", [3 * number + k for k in range(3)], 16)
    both = f"data.train=[{tmp_path}/0.rec, {tmp_path}/1.rec]"
    for train, message in (
        (both, "--gpus is 99 for 6 classes"),
        (f"data.train={tmp_path}/*.rec", "--gpus is 99 for 6 classes"),
        ("data.train=nowhere.rec", "nowhere.rec"),
        ("data.train=s3://faces/train.rec", "data.train is s3://faces/train.rec, which would have"),
        ("data.train=[https://me:word@host/a.tar]", "https://host/a.tar"),
    ):
        line = exit_line("tools/plan.py", config, train, "--gpus", 99)
        assert message in line, train
        assert "word" not in line
        assert "\n" not in line
        assert ("give --classes and --images" in line) != ("for 6 classes" in line)
