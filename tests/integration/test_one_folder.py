"""One run, one folder, with real commands: a second start, and a start after torchrun's death."""

from kappaface_dist.checkpoint.folder import complete_checkpoints
from kappaface_dist.training.metrics_file import read_metrics
from tests.commands import python
from tests.integration.faults import last_step, start, wait_for, workers


def test_a_second_start_is_refused_and_one_after_torchrun_died_goes_on(write_config, tmp_path):
    folder = tmp_path / "run"
    path = write_config(run={"steps": 100_000, "timeout_minutes": 0.5}, checkpoint={"every": 5})
    first = start(2, path)
    try:
        wait_for(lambda: last_step(folder) >= 6, first)
        config = (folder / "config.yaml").read_text()
        second = python("launch/train.py", path, "optimizer.lr=0.5")
        assert second.returncode == 1
        owner = workers(first)[0]
        assert f"error: another run is using {folder}: process {owner} of" in second.stderr
        assert (folder / "config.yaml").read_text() == config
        assert first.poll() is None
    finally:
        first.kill()
    first.wait()
    # At once: the ranks that torchrun leaves behind are about to see it.
    reached = int(complete_checkpoints(folder / "checkpoints")[-1].name[5:])
    third = python("launch/train.py", path, f"run.steps={reached + 400}")
    assert third.returncode == 0, third.stderr
    assert "going on from" in third.stderr
    steps = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert steps == sorted(set(steps))
    assert not (folder / "run.lock").exists()
