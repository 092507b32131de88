"""tools/benchmark_head.py measures what it says, in one process and in two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLASSES, BATCH, SIZE = 60_000, 128, 32


def run_benchmark(target, *options):
    command = [sys.executable, "tools/benchmark_head.py", "--json", str(target), *options]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done, json.loads(target.read_text()) if target.exists() else None


@pytest.mark.parametrize("ranks", [1, 2])
def test_both_sides_are_measured(tmp_path, ranks):
    sizes = ("--classes", f"{CLASSES}", "--batch", f"{BATCH}", "--embedding", f"{SIZE}")
    options = ("--ranks", str(ranks), "--repeats", "2", "--sample-rate", "0.1")
    options += ("--heads", "2")
    done, report = run_benchmark(tmp_path / "report.json", *sizes, *options)
    assert done.returncode == 0, done.stderr
    logit_bytes = 4 * CLASSES * BATCH / ranks
    streaming, dense = report["streaming"], report["dense"]
    assert report["ranks"] == ranks
    # The dense head holds two matrices of logits at least, ours none.
    assert dense["extra_bytes"] > 2 * logit_bytes
    assert report["streaming_full"]["extra_bytes"] < logit_bytes
    assert min(side["processor_seconds"] for side in (streaming, report["streaming_full"])) > 0
    for side in (streaming, dense, report["several"]):
        assert side["state_bytes_per_parameter"] == 8
        assert side["ps_per_logit"] == pytest.approx(side["seconds"] * 4e12 / logit_bytes)
    assert report["time_ratio"] == streaming["seconds"] / dense["seconds"]
    of_several = report["several"]["seconds"] / streaming["seconds"]
    assert report["time_ratio_of_several"] == of_several
    assert report["memory_ratio"] == streaming["extra_bytes"] / dense["extra_bytes"]


def test_what_is_skipped_is_reported(tmp_path):
    sizes = ("--classes", "20000", "--batch", "64", "--embedding", "64", "--repeats", "2")
    skip = ("--skip-mass", "0.02", "--near", "--no-dense", "--chunk-bytes", "100000")
    skip += ("--sub-centres", "2")
    done, report = run_benchmark(tmp_path / "report.json", *sizes, *skip)
    assert done.returncode == 0, done.stderr
    assert 0 < report["streaming"]["skipped_mass"] <= 0.02
    assert report["streaming"]["skipped_tiles"] > 0.1
    assert "skipped_mass" not in report["streaming_full"]
    several = report["several_centres"]  # of which each takes what one a class takes
    assert several["state_bytes_per_parameter"] == 16
    ratio = several["seconds"] / report["streaming"]["seconds"]
    assert report["time_ratio_of_several_centres"] == ratio
    seconds = [report[side]["seconds"] for side in ("streaming", "streaming_full")]
    assert report["time_ratio_to_full"] == seconds[0] / seconds[1]
    for side in ("streaming", "streaming_full"):
        assert 0 < report[side]["launch_seconds"] <= max(report[side]["seconds_each"])


def test_a_batch_that_the_ranks_cannot_share_is_refused(tmp_path):
    for options in (["--batch", "33"], ["--batch", "66", "--heads", "2"]):
        done, _ = run_benchmark(tmp_path / "report.json", *options, "--ranks", "2")
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: --batch-size is {options[1]} for 2 ranks")
