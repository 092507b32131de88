"""What users get wrong: one sentence, on every rank, and no hang."""

import pickle
import shutil

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.data.loading.dali import dali_is_installed
from kappaface_dist.data.sources.recordio import RecordWriter
from kappaface_dist.training.build import build_job
from kappaface_dist.training.trainer import Trainer
from tests.commands import torchrun
from tests.processes import run_on_ranks

NUM_RANKS = 2
needs_dali = pytest.mark.skipif(not dali_is_installed(), reason="NVIDIA DALI is not installed")


def attempt(path, *overrides):
    """Build and train in this process; the message of the error, if there is one."""
    try:
        config = load_config(path, list(overrides))
        config.folder.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(build_job(config, torch.device("cpu")))
        trainer.fit()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return f"finished with {trainer.job.loader.num_corrupt} corrupt images"


def messages(path, *overrides, num_ranks=NUM_RANKS):
    """The same one-line message of every rank."""
    found = run_on_ranks(num_ranks, attempt, path, *overrides)
    assert len(set(found)) == 1, found
    assert "\n" not in found[0]
    return found[0]


@pytest.fixture
def record(faces, tmp_path):
    """A copy of the small dataset, to be damaged."""
    for name in ("train.rec", "train.idx"):
        shutil.copy(faces / name, tmp_path / name)
    return tmp_path / "train.rec"


def write_record(folder, payloads, labels):
    folder.mkdir()
    with RecordWriter(folder / "train") as writer:
        for label, payload in zip(labels, payloads, strict=True):
            writer.write(label, payload)
    return folder / "train.rec"


def pictures(count):
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [encode_jpeg(c.repeat(8, 0).repeat(8, 1)) for c in coarse]


def test_a_missing_dataset(write_config):
    message = messages(write_config(), "data.train=nowhere.rec")
    assert message.startswith("there is no dataset at nowhere.rec: give the path of a .rec, .tar")


def test_a_truncated_record(write_config, record):
    record.write_bytes(record.read_bytes()[:-1000])
    message = messages(write_config(), f"data.train={record}")
    assert str(record) in message


def test_an_index_that_does_not_fit(write_config, record):
    index = record.with_suffix(".idx")
    index.write_text(index.read_text().replace("\t", "\t4"))
    message = messages(write_config(), f"data.train={record}")
    assert ".idx" in message


def test_a_label_below_zero(write_config, tmp_path):
    payloads = pictures(4)
    path = write_record(tmp_path / "bad", payloads, [0, 1, 2, 3])
    content = bytearray(path.read_bytes())
    # Record 2's label: behind three records' lengths, its magic, length and flag.
    offset = int(path.with_suffix(".idx").read_text().splitlines()[2].split("\t")[1]) + 12
    content[offset : offset + 4] = np.float32(-3).tobytes()
    path.write_bytes(content)
    message = messages(write_config(), f"data.train={path}")
    assert "-3" in message
    assert "record 2" in message


def test_more_ranks_than_classes(write_config, tmp_path):
    path = write_record(tmp_path / "few", pictures(6), [0, 1, 0, 1, 0, 1])
    message = messages(write_config(), f"data.train={path}", num_ranks=3)
    assert "has 2 classes for 3 ranks" in message


def test_a_checkpoint_of_another_model(write_config):
    path = write_config(run={"steps": 2})
    assert messages(path).startswith("finished")
    accept = "run.accept_changes=[backbone.embedding_size]"
    message = messages(path, "backbone.embedding_size=16", "run.steps=4")
    assert message.endswith(f"on purpose, set {accept}")
    message = messages(path, "backbone.embedding_size=16", "run.steps=4", accept)
    assert "it is of another model or dataset; start in another run folder" in message
    message = messages(path, "optimizer.name=adamw", "run.steps=4")
    assert "it is of another model or optimizer; start in another run folder" in message


def test_never_does_not_mix_two_runs(write_config):
    path = write_config(run={"steps": 2})
    assert messages(path, "run.resume=never").startswith("finished")
    assert "choose another run.name" in messages(path, "run.resume=never")
    assert "is not a complete checkpoint" in messages(path, "run.resume=/nowhere")


class Hostile:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_a_hostile_verification_set(write_config, tmp_path, capfd):
    path = tmp_path / "hostile.bin"
    path.write_bytes(pickle.dumps(([Hostile(), b""], [True])))
    message = messages(write_config(), f"evaluate.sets.lfw={path}")
    assert f"{path} is refused" in message
    assert "this must never be printed" not in capfd.readouterr().out


def test_a_non_finite_loss(write_config):
    message = messages(write_config(), "optimizer.lr=1e30", "optimizer.clip_norm=null")
    assert message.startswith("the loss of step 1 is not finite: learning rate: ")
    # The weights are huge, and what they make of an image is no number any more.
    assert "has an embedding that is not finite though the weights are finite" in message
    assert "the learning rate (9.34e+29) may be too high" in message


def damage(payloads, share):
    """Break a share of the images, evenly spread."""
    broken = set(np.linspace(0, len(payloads) - 1, round(share * len(payloads)), dtype=int))
    return [p[:40] if i in broken else p for i, p in enumerate(payloads)], len(broken)


@pytest.mark.parametrize("loader", ["cpu", pytest.param("dali", marks=needs_dali)])
@pytest.mark.parametrize(("share", "finishes"), [(0.01, True), (0.2, False)])
def test_corrupt_images(write_config, tmp_path, share, finishes, loader):
    payloads, num_broken = damage(pictures(240), share)
    path = write_record(tmp_path / "broken", payloads, [i % 12 for i in range(240)])
    config = write_config(run={"steps": 20}, data={"loader": loader})
    message = messages_of_corrupt(config, path)
    if finishes:
        assert message.startswith("finished")
        assert num_broken == 2
    else:
        assert "could not be decoded, more than data.max_corrupt_share (5.0%)" in message


def messages_of_corrupt(path, record):
    """One epoch; ranks see different corrupt images, but all finish or all stop."""
    found = run_on_ranks(NUM_RANKS, attempt, path, f"data.train={record}")
    if all(message.startswith("finished") for message in found):
        assert sum(int(message.split()[2]) for message in found) == 2 * 2
        return found[0]
    assert len(set(found)) == 1, found
    return found[0]


def test_the_command_line_says_it_in_one_line(write_config):
    path = write_config()
    for override, expected in (
        ("optimizer.lrr=1", "error: the command line: unknown key optimizer.lrr: did you mean"),
        ("data.train=nowhere.rec", "error: there is no dataset at nowhere.rec"),
    ):
        result = torchrun(2, "launch/train.py", path, override)
        assert result.returncode != 0
        # A line of each rank; then torchrun's report, which ends with it.
        assert sum(line.startswith(expected) for line in result.stderr.splitlines()) == 2
        assert expected in result.stderr.rstrip().rstrip("=").rstrip().splitlines()[-1]
        assert 'launch/train.py", line' not in result.stderr


def test_check_and_print_config(write_config):
    path = write_config()
    checked = torchrun(2, "launch/train.py", path, "--check", "head.sample_rate=0.5")
    assert checked.returncode == 0, checked.stderr
    assert '"classes_per_rank": [\n    15,\n    15\n  ]' in checked.stdout
    printed = torchrun(2, "launch/train.py", "--print-config", path, "head.sample_rate=0.5")
    assert printed.stdout.count("sample_rate: 0.5") == 1
