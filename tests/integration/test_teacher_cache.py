"""A teacher's embeddings from a file: those that it gives, mirrored or not, or a refusal."""

import json
import runpy

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from kappaface_dist.config.file import load_config
from kappaface_dist.models.teacher import load_teacher
from kappaface_dist.planning.teacher import teacher_flops, teacher_items
from kappaface_dist.training.build import build_job
from kappaface_dist.training.teacher_cache import write_cache
from tests.commands import ROOT, exit_line
from tests.integration.test_datasets import fit
from tests.integration.test_distillation import write_teacher
from tests.unit.data.made_records import jpeg, record

NUM_IMAGES, CORRUPT = 30, 4
CPU = torch.device("cpu")
TOOL = "tools/cache_teacher.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A record with an unreadable image, another one, and two teachers."""
    folder = tmp_path_factory.mktemp("cache")
    for name, seed in (("train", 0), ("other", 100)):
        payloads = [jpeg(seed + i, 32) for i in range(NUM_IMAGES)]
        payloads[CORRUPT] = payloads[CORRUPT][:50]
        records = [record(i % 6, payload, i) for i, payload in enumerate(payloads)]
        (folder / f"{name}.rec").write_bytes(b"".join(records))
    for name, seed in (("a", 1), ("b", 2)):
        write_teacher(folder / f"{name}.safetensors", seed)
    return folder


@pytest.fixture
def config(write_config, files, tmp_path):
    return write_config(
        run={"steps": 4},
        data={"batch_size": 10, "image_size": 32, "train": str(files / "train.rec")},
        distill={"model": str(files / "a.safetensors"), "cache": str(tmp_path / "a.parquet")},
        optimizer={"lr": 0.02},
    )


def test_batches_bring_the_teacher_s_embeddings_of_what_they_show(config, files, tmp_path):
    """In every epoch about half of the images are mirrored; each row is of what its image shows."""
    read = load_config(config, ["data.max_corrupt_share=1"])
    assert write_cache(read, CPU, batch_size=7) == {"images": NUM_IMAGES, "without": 1}
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column("image").to_pylist() == list(range(NUM_IMAGES))
    row_IT = np.array(table.column("embedding").to_pylist())
    assert np.isnan(row_IT[CORRUPT]).all()
    assert np.isfinite(np.delete(row_IT, CORRUPT, axis=0)).all()
    job = build_job(read, CPU)
    assert job.distiller.network is None
    teacher = load_teacher(str(files / "a.safetensors"), 32).network
    apart = []
    for batch in job.loader.batches(0, 6):
        image_B3HW = batch.image_B3HW.clone()
        with torch.no_grad():
            ours, mirrored = (F.normalize(teacher(x)) for x in (image_B3HW, image_B3HW.flip(-1)))
        # Rounded to float16.
        torch.testing.assert_close(batch.stored_BT.float(), ours, rtol=1e-3, atol=2e-4)
        apart.append((ours - mirrored).abs().amax(dim=1))
        embedding_BD = torch.randn(10, 32)
        kept = job.distiller.loss(embedding_BD, image_B3HW, batch.stored_BT)
        expected = (1 - F.cosine_similarity(embedding_BD, ours)).mean()
        assert kept.item() == pytest.approx(expected.item(), abs=1e-3)
    assert torch.cat(apart).median() > 0.01  # a row of the mirror image would be seen
    assert (teacher_items(read), teacher_flops(read)) == ({}, 0)


def test_a_run_is_that_with_the_teacher_and_goes_on_bitwise(config, tmp_path):
    shared = ["data.max_corrupt_share=1", "data.augment=flip"]
    write_cache(load_config(config), CPU)
    whole, state = fit(config, *shared, f"run.folder={tmp_path}/whole")
    fit(config, *shared, f"run.folder={tmp_path}/parts", stop_after=2)
    parts, again = fit(config, *shared, f"run.folder={tmp_path}/parts")
    assert [parts[s]["distill_loss"] for s in parts] == [whole[s]["distill_loss"] for s in whole]
    for name, value in state.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    # With the teacher itself, in the same problem: a checkpoint of one goes on as the other.
    lines, _ = fit(config, *shared, "distill.cache=null", f"run.folder={tmp_path}/live")
    for step, line in lines.items():
        assert whole[step]["distill_loss"] == pytest.approx(line["distill_loss"], abs=2e-3)
    fit(config, *shared, "distill.cache=null", "run.steps=5", f"run.folder={tmp_path}/whole")


def test_a_stale_file_is_refused_in_one_line(config, files, tmp_path):
    write_cache(load_config(config, ["data.augment=none"]), CPU)
    for override, message in (
        (f"distill.model={files}/b.safetensors", "is of a teacher of the weights"),
        (f"data.train={files}/other.rec", "is of another dataset or image size (pictures: "),
        ("distill.cache=absent.parquet", "there is no absent.parquet: python tools/cache_teacher"),
        (f"distill.cache={config}", "is damaged ("),
        ("data.augment=flip", "has no embeddings of mirrored images, and data.augment is flip"),
        ("data.augment=strong", "data.augment is strong, whose images are not those that the"),
    ):
        line = exit_line("launch/train.py", config, "data.augment=none", override, "--check")
        assert line.startswith("error: ")
        assert message in line
        assert "\n" not in line
    line = exit_line(TOOL, config, "distill.cache=null")
    assert line == "error: distill.model, the teacher, and distill.cache, the file, must be set"
    line = exit_line(TOOL, config, f"distill.cache={tmp_path}")  # before the hours of work
    assert line == f"error: distill.cache {tmp_path} is a folder: name a file"


def test_the_tool_says_what_it_wrote(config, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", [TOOL, str(config), "--json", "-", "--device", "cpu"])
    runpy.run_path(str(ROOT / TOOL), run_name="__main__")
    found = json.loads(capsys.readouterr().out)
    path = str(tmp_path / "a.parquet")
    assert found == {"images": NUM_IMAGES, "without": 1, "file": path}
