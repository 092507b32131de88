"""What is saved is counted, and deleted again."""

import torch

from kappaface_dist.planning.checkpoint_benchmark import measure_pauses


def test_pauses_of_both_ways(tmp_path):
    report = measure_pauses(tmp_path / "saved", 40, 2, torch.device("cpu"))
    assert len(report["blocking_seconds"]) == len(report["asynchronous_seconds"]) == 2
    # Centres and momentum of 40 classes at the least, fp32.
    assert report["gigabytes"] * 1e9 >= 2 * 40 * 512 * 4
    assert list(tmp_path.iterdir()) == []
