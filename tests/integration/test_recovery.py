"""Elastic restarts element by element, the step back on a non-finite loss, seeds by position."""

import json

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import build_job
from kappaface_dist.training.loss_guard import LossGuard, likely_cause
from kappaface_dist.training.trainer import Trainer
from tests.apex_stand_in import install
from tests.integration.test_training import fit
from tests.processes import run_on_ranks


def state_of(job):
    """(tensors alike on all ranks, this rank's rows) as numpy copies."""
    alike = {k: v.detach().clone().numpy() for k, v in job.network.state_dict().items()}
    for name, parameter in job.network.named_parameters():
        for key, value in job.optimizer.state.get(parameter, {}).items():
            if value is not None:
                alike[f"optimizer.{name}.{key}"] = value.detach().clone().numpy()
    return alike, {k: v.detach().clone().numpy() for k, v in job.head.sharded_state().items()}


class Records:
    """A loader that notes a checksum of every image, and ends the run after some steps."""

    def __init__(self, loader, trainer, num_steps):
        self._loader, self._trainer, self._num_steps = loader, trainer, num_steps
        self.seen = []

    def batches(self, position, num_steps):
        for batch in self._loader.batches(position, min(num_steps, self._num_steps)):
            images = batch.image_B3HW.double().flatten(1)
            weights = torch.arange(images.shape[1], dtype=torch.float64).cos()
            self.seen.append((images @ weights).tolist())
            yield batch

    def __getattr__(self, name):
        return getattr(self._loader, name)


def part(path, overrides, num_steps):
    """Goes on where the run is; returns what was loaded, what was saved, and the images seen."""
    config = load_config(path, overrides)
    if parallel.rank() == 0:
        config.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(build_job(config, torch.device("cpu")))
    loaded, begin = state_of(trainer.job), trainer.state.step
    records = Records(trainer.job.loader, trainer, num_steps)
    trainer.job.loader = records
    if num_steps < trainer.job.length.steps_left(trainer.state.step, trainer.state.position):
        with pytest.raises(StopIteration):
            trainer.fit()
        trainer.saver.finish()
    else:
        trainer.fit()
    return begin, loaded, state_of(trainer.job), records.seen


def joined(parts, which):
    """The state of all ranks as one: (alike, rows of all classes)."""
    alike, rows = parts[0][which][0], {}
    for name in parts[0][which][1]:
        rows[name] = np.concatenate([one[which][1][name] for one in parts])
    return alike | {f"head.{name}": value for name, value in rows.items()}


def test_any_number_of_ranks_in_mid_epoch_takes_over_element_by_element(write_config, tmp_path):
    """4 -> 2 -> 3 -> 1 -> 4 ranks, 30 classes; every image of the epoch is seen once."""
    path = write_config(
        backbone={"name": "tiny_gn"},
        run={"steps": None, "epochs": 1},
        checkpoint={"every": 4, "keep": 1},
        data={"augment": "none"},
    )
    seen, saved, step = [], None, 0
    for num_ranks in (4, 2, 3, 1, 4):
        overrides = [f"data.batch_size={12 // num_ranks}"]
        num_steps = 4 if len(seen) < 16 else 1000
        parts = run_on_ranks(num_ranks, part, path, overrides, num_steps)
        assert parts[0][0] == step
        if saved is not None:
            loaded = joined(parts, 1)
            assert loaded.keys() == saved.keys()
            for name, value in saved.items():
                np.testing.assert_array_equal(loaded[name], value, err_msg=name)
            assert sum(name.startswith("optimizer.") for name in loaded) > 10
        saved, step = joined(parts, 2), step + 4
        for batches in zip(*(one[3] for one in parts), strict=True):
            seen.append([checksum for batch in batches for checksum in batch])
    config = load_config(path, ["data.batch_size=1"])
    job = build_job(config, torch.device("cpu"))
    images = job.num_images
    assert images > 200
    expected = [
        (
            batch.image_B3HW.double().flatten(1) @ torch.arange(3072, dtype=torch.float64).cos()
        ).item()
        for batch in job.loader.batches(0, images)
    ]
    job.loader.close()
    first_epoch = [checksum for step in seen for checksum in step][:images]
    assert len(set(expected)) > 0.9 * images
    np.testing.assert_allclose(sorted(first_epoch), sorted(expected), rtol=1e-9)


class Poisons:
    """A loader that spoils the last rank's images at given positions, each so many times."""

    def __init__(self, loader, times, global_batch):
        self._loader, self._times, self._global_batch = loader, times, global_batch

    def batches(self, position, num_steps):
        for batch in self._loader.batches(position, num_steps):
            left = self._times.get(position, 0)
            if left and parallel.rank() == parallel.world_size() - 1:
                self._times[position] = left - 1
                image_B3HW = batch.image_B3HW.clone()
                image_B3HW[2] = torch.nan
                batch = Batch(image_B3HW, batch.label_B)
            position += self._global_batch
            yield batch

    def __getattr__(self, name):
        return getattr(self._loader, name)


def poisoned_fit(path, times):
    config = load_config(path)
    if parallel.rank() == 0:
        config.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(build_job(config, torch.device("cpu")))
    trainer.job.loader = Poisons(trainer.job.loader, dict(times), trainer.job.global_batch)
    try:
        trainer.fit()
    except ValueError as error:
        return str(error), trainer.state.step, trainer.state.skipped
    return None, trainer.state.step, trainer.state.skipped


def test_a_non_finite_loss_costs_one_step_and_no_more(write_config, tmp_path):
    path = write_config(run={"steps": 30})
    results = run_on_ranks(2, poisoned_fit, path, {13 * 24: 99})
    assert results == [(None, 30, [13 * 24])] * 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert losses.keys() == set(range(1, 31))
    assert np.isfinite(list(losses.values())).all()


def test_a_second_non_finite_loss_stops_the_run_with_a_report(write_config, tmp_path):
    path = write_config(run={"steps": 30})
    for error, step, _ in run_on_ranks(2, poisoned_fit, path, {13 * 24: 99, 17 * 24: 99}):
        assert step == 17
        assert "the loss of step 17 is not finite: input: image 2 of the batch of rank 1" in error
        assert "a second time" in error
    report = json.loads((tmp_path / "run" / "non_finite.json").read_text())
    assert report["position"] == 17 * 24
    assert report["skipped_positions"] == [13 * 24]
    assert report["last_metrics"][-1]["step"] == 17


def test_before_the_first_checkpoint_there_is_nowhere_to_go_back(write_config):
    path = write_config(optimizer={"lr": 1e30, "clip_norm": None})
    with pytest.raises(ValueError, match=r"not finite: .*learning rate.*before the first check"):
        fit(path)


def test_the_cause_is_named_in_the_order_in_which_one_spoils_the_next(write_config):
    job = build_job(load_config(write_config()), torch.device("cpu"))
    batch = next(iter(job.loader.batches(0, 1)))
    job.loader.close()
    job.network.eval()  # its running statistics stay what they are
    job.head.refuses_labels = False  # as on a GPU

    def cause(image_B3HW=None, label_B=None):
        image_B3HW = batch.image_B3HW if image_B3HW is None else image_B3HW
        changed = Batch(image_B3HW, batch.label_B if label_B is None else label_B)
        with torch.no_grad():
            loss = job.head(job.network(changed.image_B3HW), changed.label_B)
        guard = LossGuard(job, late=True)
        guard.watch(loss + torch.inf, 0, [changed])  # infinite, where it is not NaN
        return likely_cause(job, guard.first_bad(), 0.1)

    assert cause().startswith("scale: ")
    weight = job.network.conv1.weight
    with torch.no_grad():
        kept = weight.clone()
        weight[0] = torch.nan
    assert "backbone conv1.weight of rank 0 is not finite" in cause()
    wrong = batch.label_B.clone()
    wrong[3] = 30
    assert cause(label_B=wrong).startswith("label: image 3 ")
    spoiled = batch.image_B3HW.clone()
    spoiled[1] = torch.inf
    assert cause(image_B3HW=spoiled).startswith("input: image 1 ")
    with torch.no_grad():
        weight.copy_(kept)
        job.head.weight_KD[4] = torch.nan
    assert "the class centres of rank 0" in cause()


def test_the_best_checkpoint_stays(write_config, faces, tmp_path):
    path = write_config(
        run={"steps": 40},
        evaluate={"sets": {"unseen": str(faces / "unseen.bin")}, "every": 5},
        checkpoint={"every": 10, "keep": 1, "best": "accuracy/unseen"},
    )
    fit(path)
    root = tmp_path / "run" / "checkpoints"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    accuracy = {
        line["step"]: line["accuracy/unseen"] for line in lines if "accuracy/unseen" in line
    }
    best = max(accuracy, key=lambda step: (accuracy[step], -step))
    kept = {int(folder.name[5:]) for folder in root.iterdir()}
    saved_best = max(kept, key=lambda step: accuracy[step])
    assert accuracy[saved_best] == accuracy[best]
    assert 40 in kept
    assert len(kept) <= 2


@pytest.mark.parametrize("name", ["sgd", "lamb"])
def test_apex_optimizers_go_on_with_their_count_of_steps(write_config, tmp_path, monkeypatch, name):
    install(monkeypatch)
    path = write_config(
        optimizer={"implementation": "apex", "name": name, "lr": 0.01, "schedule": "cosine"},
        run={"steps": 12},
        checkpoint={"every": 6},
    )
    whole = fit(path, f"run.folder={tmp_path}/whole")[2]
    begin, *_ = part(path, [], 6)
    assert begin == 0
    step, _, found = fit(path)
    assert step == 12
    for key, value in whole.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
