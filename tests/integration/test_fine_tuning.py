"""A run that starts from another: its backbone, frozen at first, and its identities."""

import numpy as np
import pytest
import torch

from kappaface_dist.checkpoint.tensors import load_alone, stored_tensors
from kappaface_dist.config.file import load_config
from kappaface_dist.made_up_faces.dataset import write_faces
from kappaface_dist.training.build import build_job
from kappaface_dist.training.trainer import Trainer
from tests.integration.test_training import fit
from tests.processes import run_on_ranks


def rows_after_start(path, overrides):
    """The head's rows before the first step."""
    trainer = Trainer(build_job(load_config(path, overrides), torch.device("cpu")))
    return {k: v.numpy() for k, v in trainer.job.head.sharded_state().items()}


def stored_rows(folder):
    found = {
        name: torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in stored_tensors(folder).items()
        if name.startswith("head.")
    }
    load_alone(folder, found)
    return {name.removeprefix("head."): tensor.numpy() for name, tensor in found.items()}


def test_identities_that_stay_keep_centre_momentum_and_statistics(write_config, faces, tmp_path):
    path = write_config(run={"steps": 50})
    run_on_ranks(2, fit, path)  # two epochs: the statistics have been measured
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000050"
    old = stored_rows(checkpoint)
    other = tmp_path / "other"
    write_faces(other, num_identities=31, num_unseen=5, seed=3, image_size=32, processes=1)
    # Classes 3 and 17 go, 28 stay in another order, 3 are new.
    stay = np.random.default_rng(0).permutation([c for c in range(30) if c not in (3, 17)])
    place = np.random.default_rng(1).permutation(31)[:28]
    lines = [f"{before}\t{now}\tsomebody" for before, now in zip(stay, place, strict=True)]
    (tmp_path / "map.tsv").write_text("\n".join(lines))
    overrides = [
        f"run.folder={tmp_path}/second",
        f"data.train={other}/train.rec",
        f"head.init={checkpoint}",
        f"head.identity_map={tmp_path}/map.tsv",
    ]
    parts = run_on_ranks(3, rows_after_start, path, overrides)
    fresh = run_on_ranks(1, rows_after_start, path, overrides[:2])[0]
    new = sorted(set(range(31)) - set(place.tolist()))
    assert {"weight", "optimizer.momentum", "statistics.kappa", "statistics.sum"} <= old.keys()
    # What the earlier run's last epoch had shown is seen again in this one's first.
    seen = {f"statistics.{name}" for name in ("sum", "weight", "squared_weight")}
    for name, before in old.items():
        found = np.concatenate([part[name] for part in parts])
        expected = np.zeros_like(before) if name in seen else before
        np.testing.assert_array_equal(found[place], expected[stay], err_msg=name)
        np.testing.assert_array_equal(found[new], fresh[name][new], err_msg=name)
        assert before.any(), name
    assert np.isfinite(old["statistics.kappa"]).any()
    assert np.abs(old["optimizer.momentum"]).max() > 0
    with pytest.raises(ValueError, match=r"30 classes and the dataset 31: .* head\.identity_map"):
        rows_after_start(path, overrides[:3])
    with pytest.raises(ValueError, match="its margin, optimizer and embedding size must be"):
        rows_after_start(path, [*overrides, "optimizer.name=adamw"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_frozen_backbone_stays_and_the_head_learns(write_config, tmp_path, precision):
    path = write_config(
        backbone={"first_steps": 6}, run={"steps": 6}, optimizer={"lr": 0.2}, precision=precision
    )
    start = build_job(load_config(path), torch.device("cpu"))
    before, rows = start.network.state_dict(), start.head.weight_KD
    _, _, state = run_on_ranks(2, fit, path)[0]
    for name, tensor in before.items():
        np.testing.assert_array_equal(state[f"backbone.{name}"], tensor.numpy(), err_msg=name)
    assert np.abs(state["head.weight"] - rows[:15].numpy()).max() > 1e-4
    # From the seventh step on it learns too; in fp16, once the loss scale has come down.
    _, _, state = run_on_ranks(2, fit, path, "run.steps=24")[0]
    changed = [n for n, t in before.items() if (state[f"backbone.{n}"] != t.numpy()).any()]
    assert "conv1.weight" in changed
    assert "bn1.running_mean" in changed


def test_a_backbone_can_have_a_learning_rate_of_its_own_at_first(write_config):
    path = write_config(
        run={"steps": 1}, backbone={"first_steps": 1}, optimizer={"weight_decay": 0.0}
    )
    before = build_job(load_config(path), torch.device("cpu")).network.conv1.weight.detach()
    moves = {}
    for factor in (0.01, 1.0):
        folder = f"run.folder={load_config(path).folder}_{factor}"
        state = fit(path, f"backbone.first_lr_factor={factor}", folder)[2]
        moves[factor] = state["backbone.conv1.weight"] - before.numpy()
    np.testing.assert_allclose(moves[0.01], 0.01 * moves[1.0], rtol=1e-2, atol=1e-7)


def test_a_published_backbone_starts_a_run(write_config, tmp_path):
    path = write_config(run={"steps": 2})
    network = build_job(load_config(path, ["run.seed=5"]), torch.device("cpu")).network
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, tmp_path / "b.pth")
    started = build_job(
        load_config(path, [f"backbone.init={tmp_path}/b.pth"]), torch.device("cpu")
    ).network
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(started.state_dict()[name], tensor, rtol=0, atol=0)
