"""Runs with several centres a class: stopped, dealt out anew, and what is refused."""

import shutil

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.margin_study.margin_report import read_measures
from kappaface_dist.margin_study.reliability import embed_classes
from kappaface_dist.training.build import build_job
from kappaface_dist.training.summary import write_report
from kappaface_dist.training.trainer import Trainer
from tests.integration.test_datasets import fit
from tests.processes import run_on_ranks

STEPS = 9
# The same global batch on each number of ranks.
BATCHES = {1: 12, 2: 6, 3: 4}


@pytest.fixture
def config(write_config):
    return write_config(
        run={"steps": STEPS},
        data={"augment": "none"},
        backbone={"name": "tiny_gn"},
        head={"sub_centres": 3},
        margin={"name": "kappaface", "scale": 16, "refresh_steps": 2, "decay": 0.5},
        checkpoint={"every": None, "keep": 10},
    )


def test_a_stopped_run_ends_bitwise_as_one_that_was_not(config, tmp_path):
    sampled = ("head.sample_rate=0.5", "optimizer.accumulate=2")
    whole = run_on_ranks(2, fit, config, f"run.folder={tmp_path}/whole", *sampled)

    def interrupted():
        return fit(config, f"run.folder={tmp_path}/parts", *sampled, stop_after=5)

    run_on_ranks(2, interrupted)
    assert not (tmp_path / f"parts/checkpoints/step_{STEPS:08}").exists()
    found = run_on_ranks(2, fit, config, f"run.folder={tmp_path}/parts", *sampled)
    for (lines, expected), (ours, state) in zip(whole, found, strict=True):
        for name in ("loss", "non_dominant_share"):
            assert [ours[step][name] for step in ours] == [lines[step][name] for step in lines]
        assert expected.keys() == state.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(state[name], value, err_msg=name)
    assert 0 < ours[STEPS]["non_dominant_share"] < 2 / 3


def started(path, *overrides):
    """The job before its first step, or where it goes on."""
    return Trainer(build_job(load_config(path, list(overrides)), torch.device("cpu"))).job


def test_another_number_of_ranks_goes_on_and_another_number_of_centres_does_not(
    config, tmp_path, caplog
):
    """2 -> 3 -> 1 ranks: the centres of a class stay together; then a head of the dominant ones."""
    caplog.set_level("INFO")
    whole, last = fit(config, f"run.folder={tmp_path}/whole")
    assert f"  at other centres {whole[STEPS]['non_dominant_share']:.1%}  lr" in caplog.text

    def part(num_ranks, stop_after):
        batch = f"data.batch_size={BATCHES[num_ranks]}"
        return fit(config, batch, f"run.folder={tmp_path}/parts", stop_after=stop_after)

    found = {}
    for num_ranks, stop_after in ((2, 3), (3, 3), (1, None)):
        lines, state = run_on_ranks(num_ranks, part, num_ranks, stop_after)[0]
        found |= lines
    assert len(found) == STEPS
    for name in ("loss", "margin_mean", "non_dominant_share"):
        ours, expected = ([one[step][name] for step in sorted(one)] for one in (found, whole))
        # fp32 sums in another order, grown by training.
        np.testing.assert_allclose(ours, expected, rtol=2e-3, err_msg=name)
    np.testing.assert_allclose(state[".statistics.chosen"], last[".statistics.chosen"])

    folder = f"run.folder={tmp_path}/parts"
    numbers = {"steps": STEPS, "images_seen": 12 * STEPS, "seconds": 1.0, "loss": 1.0}
    summary = write_report(started(config, folder), {}, **numbers)
    assert summary["non_dominant_share"] == found[STEPS]["non_dominant_share"]
    accepted = "run.accept_changes=[head.sub_centres]"  # what does not fit is not to be accepted
    for number, remedy in ((1, ", with head.init=.* for the dominant ones$"), (2, "$")):
        sentence = rf"has 3 centres a class, and head\.sub_centres is {number}: set it to 3, or"
        for more in ((), (accepted,)):
            with pytest.raises(ValueError, match=f"{sentence} start in another run.folder{remedy}"):
                fit(config, folder, f"head.sub_centres={number}", *more)
    shutil.copy(config, tmp_path / "parts" / "config.yaml")
    embedded, _ = embed_classes(read_measures(tmp_path / "parts"), 100)
    centre_IAD = state[".weight"][embedded.label_I].astype(np.float64)
    centre_IAD /= np.linalg.norm(centre_IAD, axis=2, keepdims=True)
    nearest_I = (centre_IAD * embedded.embedding_ID[:, None]).sum(axis=2).max(axis=1)
    np.testing.assert_allclose(embedded.target_cosine_I, nearest_I, atol=1e-6)
    init = f"head.init={tmp_path}/parts/checkpoints/step_{STEPS:08}"
    arguments = ("head.sub_centres=1", f"run.folder={tmp_path}/next", init)
    rows = started(config, *arguments).head.weight_KD.numpy()
    dominant = state[".statistics.chosen"].argmax(axis=1)
    np.testing.assert_array_equal(rows, state[".weight"][np.arange(30), dominant])
    lines, _ = fit(config, *arguments, "run.steps=1")
    assert "non_dominant_share" not in lines[1]
    with pytest.raises(ValueError, match=r"has 1 centres a class, and head\.sub_centres is 3"):
        fit(config, f"run.folder={tmp_path}/next", "run.steps=2")
