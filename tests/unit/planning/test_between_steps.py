"""What lies between the steps, as it is planned, beside the code that runs."""

import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.planning.between_steps import operation_bytes
from kappaface_dist.planning.job_size import size_given
from kappaface_dist.planning.made_up_job import made_up_job, random_batches
from kappaface_dist.planning.memory_meter import MemoryMeter
from kappaface_dist.training.step import train_step

FEW, MANY = 300, 60_000  # classes: the step's images take more bytes than the vectors, and less


@pytest.mark.parametrize("num_classes", [FEW, MANY])
@pytest.mark.parametrize(
    "setting", ["statistic_dtype=bf16", "statistic=target_cosine", "decay=0.5"]
)
def test_an_epoch_s_end_takes_what_is_planned(tmp_path, setting, num_classes):
    path = tmp_path / "config.yaml"
    path.write_text(
        "run: {steps: 3}\n"
        "data: {train: nowhere.rec, batch_size: 256, image_size: 32}\n"
        "backbone: {name: tiny, embedding_size: 64}\n"
    )
    config = load_config(path, [f"margin.{setting}", "precision=fp32"])
    planned = operation_bytes(config, size_given(config, [num_classes], None, 1))
    job = made_up_job(config, num_classes, torch.device("cpu"))
    train_step(job, random_batches(config, num_classes, torch.device("cpu")), 0.1, 1)
    with MemoryMeter() as meter:
        job.head.end_epoch()
    # 256 rows at a time, in float64, come on top where there are many.
    rows = 256 * 64 * 8 if num_classes == MANY else 0
    found, executed = planned["epoch's end"], meter.peak_bytes
    assert 0.98 * executed - rows <= found <= 1.02 * executed, (found, executed)
