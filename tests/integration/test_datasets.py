"""Runs of several datasets, a head each: from end to end, on real files."""

import json
import shutil

import numpy as np
import pytest
import torch

from kappaface_dist.checkpoint.folder import read_numbers
from kappaface_dist.config.file import load_config, parse_config, to_yaml
from kappaface_dist.data.images import encode_jpeg
from kappaface_dist.data.loading.sampler import Shuffle
from kappaface_dist.data.sources.recordio import RecordWriter
from kappaface_dist.head.heads import heads_by_name
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import build_job
from kappaface_dist.training.derived import derived_numbers
from kappaface_dist.training.metrics_file import read_metrics
from kappaface_dist.training.problem import with_margin_defaults
from kappaface_dist.training.trainer import Trainer
from tests.integration.test_training import StopsAfter
from tests.processes import run_on_ranks

CPU = torch.device("cpu")
NUM_STEPS = 10
# At the ends the same global batch, 18 images of the one and 6 of the other.
BATCHES = {1: 24, 2: 12, 3: 8}


def write_noise(path, labels, seed=0):
    generator = np.random.default_rng(seed)
    colours = generator.integers(0, 255, (max(labels) + 1, 4, 4, 3), dtype=np.uint8)
    with RecordWriter(path.with_suffix("")) as writer:
        for label in labels:
            pixels = np.kron(colours[label], np.ones((8, 8, 1), dtype=np.uint8))
            writer.write(label, encode_jpeg(pixels + generator.integers(0, 9, pixels.shape, "u1")))
    return path


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A record of 40 images of 11 classes."""
    return write_noise(tmp_path_factory.mktemp("noise") / "train.rec", [i % 11 for i in range(40)])


@pytest.fixture
def config_of_two(write_config, faces, noise):
    """Faces with ArcFace, and noise of which a memory is kept, half its classes at a time."""

    def _write(**sections):
        noisy = {"name": "kappaface", "source": "memory", "scale": 20}
        train = {
            "faces": {
                "path": str(faces / "train.rec"),
                "share": 0.75,
                "margin": {"name": "arcface"},
            },
            "noise": {"path": str(noise), "share": 0.25, "weight": 2.0, "sample_rate": 0.5},
        }
        train["noise"]["margin"] = noisy
        data = {"train": train, "batch_size": 12, "augment": "none"} | sections.pop("data", {})
        defaults = {"run": {"steps": NUM_STEPS}, "backbone": {"name": "tiny_gn"}}
        return write_config(data=data, **(defaults | sections))

    return _write


def fit(path, *overrides, stop_after=None):
    """Train in this process; returns (losses by step, all that the run has learnt)."""
    config = load_config(path, list(overrides))
    if parallel.rank() == 0:
        config.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(build_job(config, CPU))
    if stop_after is not None and parallel.rank() == 0:
        trainer.job.loader = StopsAfter(trainer.job.loader, stop_after)
    trainer.fit()
    job = trainer.job
    state = dict(job.network.state_dict())
    for name, head in heads_by_name(job.head).items():
        state |= {f"{name}.{key}": value for key, value in head.sharded_state().items()}
        if (memory := head.class_margins.memory) is not None:
            state[f"{name}.memory"] = memory.row_JD.float()
    lines = read_metrics(config.folder / "metrics.jsonl")
    found = {line["step"]: line for line in lines if "loss" in line}
    return found, {name: value.numpy().copy() for name, value in state.items()}


@pytest.mark.parametrize("num_ranks", [0, 2])
def test_a_run_that_was_stopped_ends_bitwise_as_one_that_was_not(
    config_of_two, tmp_path, num_ranks
):
    path = config_of_two(optimizer={"lr": 0.02, "accumulate": 2}, checkpoint={"every": None})
    whole = run_on_ranks(num_ranks, fit, path, f"run.folder={tmp_path}/whole")

    def interrupted():
        return fit(path, f"run.folder={tmp_path}/parts", stop_after=9)

    run_on_ranks(num_ranks, interrupted)
    assert not (tmp_path / "parts/checkpoints/step_00000010").exists()
    second = run_on_ranks(num_ranks, fit, path, f"run.folder={tmp_path}/parts")
    for (lines, expected), (found, state) in zip(whole, second, strict=True):
        assert [found[step]["loss"] for step in found] == [lines[step]["loss"] for step in lines]
        assert expected.keys() == state.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(state[name], value, err_msg=name)
    # The stream of each dataset is its own, and goes on by itself.
    folder = tmp_path / "parts/checkpoints/step_00000010"
    images = 10 * 2 * max(num_ranks, 1)
    assert read_numbers(folder)["positions"] == {"faces": 9 * images, "noise": 3 * images}


def test_another_number_of_ranks_goes_on_with_the_same_losses(config_of_two, tmp_path):
    """2 -> 3 -> 1 ranks at the same global batch; the classes are dealt out anew each time."""
    path = config_of_two(checkpoint={"every": None, "keep": 10})
    sample = "data.train.noise.sample_rate=1"  # what is drawn depends on the shards
    whole, _ = run_on_ranks(1, fit, path, sample, "data.batch_size=24", f"run.folder={tmp_path}/w")[
        0
    ]

    def part(num_ranks, stop_after):
        overrides = [sample, f"data.batch_size={BATCHES[num_ranks]}", f"run.folder={tmp_path}/p"]
        return fit(path, *overrides, stop_after=stop_after)

    found = {}
    for num_ranks, stop_after in ((2, 3), (3, 3), (1, None)):
        found |= run_on_ranks(num_ranks, part, num_ranks, stop_after)[0][0]
    assert len(found) == NUM_STEPS
    # fp32 sums in another order, grown by training.
    for name in ("loss", "loss/faces", "loss/noise", "margin_mean/noise"):
        ours, expected = ([lines[step][name] for step in sorted(lines)] for lines in (found, whole))
        np.testing.assert_allclose(ours, expected, rtol=2e-3, err_msg=name)


def test_the_log_has_the_numbers_of_each_dataset(config_of_two, tmp_path, caplog):
    caplog.set_level("INFO")
    lines, _ = fit(config_of_two())
    last = lines[NUM_STEPS]
    assert last["loss"] == pytest.approx(0.75 * last["loss/faces"] + 2 * 0.25 * last["loss/noise"])
    assert last["rank_1"] == pytest.approx(
        0.75 * last["rank_1/faces"] + 0.25 * last["rank_1/noise"]
    )
    assert (last["margin_min/faces"], last["margin_max/faces"]) == (0.5, 0.5)
    assert last["margin_mean"] == pytest.approx((30 * 0.5 + 11 * last["margin_mean/noise"]) / 41)
    # 30 of the 40 images of noise were read in ten steps of three.
    assert last["margin_refreshes/noise"] == 0
    assert last["epoch"] == pytest.approx(120 / (40 + last_images(tmp_path)))
    text = [record.message for record in caplog.records if "left 0:" in record.message][-1]
    assert f"faces loss {last['loss/faces']:.3f} rank-1 {last['rank_1/faces']:.1%}" in text
    assert "noise loss" in text
    assert "images of a batch of 12 by dataset: faces 9, noise 3" in caplog.text


def last_images(tmp_path):
    (folder,) = (tmp_path / "run/checkpoints").glob("step_00000010")
    return read_numbers(folder)["problem"]["data.train.faces"]["images"]


def test_each_dataset_is_read_in_its_own_order(config_of_two, noise):
    job = build_job(load_config(config_of_two()), CPU)
    labels = torch.cat([batch.label_B.view(12) for batch in job.loader.batches(0, 15)]).view(15, 12)
    for number, (name, columns) in enumerate((("faces", slice(0, 9)), ("noise", slice(9, 12)))):
        catalog, head = job.catalogs[name], heads_by_name(job.head)[name]
        order = Shuffle(catalog.num_images, head.seed)
        read = labels[:, columns].flatten().numpy()
        np.testing.assert_array_equal(read, catalog.label_I[order.indices(0, len(read))])
        assert (number, job.epochs(15 * 12)[name]) in {(0, 0), (1, 1)}
    assert head.seed != job.config.run.seed


def test_check_and_print_config_know_the_datasets(config_of_two):
    config = with_margin_defaults(load_config(config_of_two(optimizer={"accumulate": 2})))
    assert with_margin_defaults(parse_config(to_yaml(config), "again")) == config
    numbers = derived_numbers(build_job(config, CPU))
    noise = numbers["datasets"]["noise"]
    assert (numbers["classes"], numbers["datasets"]["faces"]["classes"]) == (41, 30)
    assert (noise["classes"], noise["images"], noise["images_per_step"]) == (11, 40, 6)
    assert (noise["settings"]["source"], noise["settings"]["scale"]) == ("memory", 20)
    assert noise["steps_per_epoch"] == 6.7
    assert noise["classes_per_rank"] == [11]
    json.dumps(numbers)


def test_other_data_of_one_dataset_is_another_problem(config_of_two, noise, tmp_path):
    path = config_of_two(run={"steps": 2})
    fit(path)
    shutil.copytree(noise.parent, tmp_path / "moved")
    more = ["run.steps=3", f"data.train.noise.path={tmp_path}/moved/train.rec"]
    fit(path, *more)  # the same elsewhere
    other = write_noise(tmp_path / "other.rec", [i % 11 for i in range(40)], seed=1)
    more = ["run.steps=4", f"data.train.noise.path={other}"]
    with pytest.raises(ValueError, match=r"data\.train\.noise was 40 images of 11 classes") as it:
        fit(path, *more)
    assert "run.accept_changes=[data.train.noise]" in str(it.value)
    fit(path, *more, "run.accept_changes=[data.train.noise]")
    for change, text in (
        ("data.train.noise.weight=3", "data.train.noise.weight was 2.0 and is 3.0"),
        ("data.train.faces.margin.margin=0.3", "data.train.faces.margin.margin was 0.5 and is 0.3"),
        (f"data.train={noise}", "the datasets were data.train.faces, data.train.noise and are"),
    ):
        with pytest.raises(ValueError, match="is of another problem") as it:
            fit(path, "run.steps=5", f"data.train.noise.path={other}", change)
        assert text in str(it.value)


def test_a_head_begins_with_an_earlier_run_s(config_of_two, faces, tmp_path):
    """Of a run of one dataset, and of one of several."""
    record = faces / "train.rec"
    one = [f"run.folder={tmp_path}/one", f"data.train={record}", "margin.name=arcface"]
    path = config_of_two()
    _, of_one = fit(path, *one)
    _, of_two = fit(path)
    inits = [f"data.train.faces.init={tmp_path}/one/checkpoints/step_00000010"]
    inits.append(f"data.train.noise.init={tmp_path}/run/checkpoints/step_00000010")
    fresh = f"run.folder={tmp_path}/fresh"
    heads = heads_by_name(Trainer(build_job(load_config(path, [*inits, fresh]), CPU)).job.head)
    np.testing.assert_array_equal(heads["faces"].weight_KD.numpy(), of_one[".weight"])
    np.testing.assert_array_equal(heads["noise"].weight_KD.numpy(), of_two["noise.weight"])
    third = [f"data.train.more={{path: {record}, share: 0.25}}", "data.train.faces.share=0.5"]
    third.append(f"data.train.more.init={tmp_path}/run/checkpoints/step_00000010")
    with pytest.raises(ValueError, match="has heads of faces, noise: name the dataset as one"):
        Trainer(build_job(load_config(path, [*third, fresh]), CPU))


def test_cached_embeddings_are_the_same_step(config_of_two, tmp_path):
    """The head sees all micro-batches at once, each with the images of both datasets in it."""
    path = config_of_two(run={"steps": 3}, optimizer={"lr": 0.02, "accumulate": 2})
    (lines, state), (cached, cached_state) = (
        fit(path, f"run.folder={tmp_path}/{word}", f"optimizer.cache_embeddings={word}")
        for word in ("false", "true")
    )
    for name in ("loss", "loss/faces", "loss/noise", "rank_1/noise"):
        assert cached[3][name] == pytest.approx(lines[3][name], rel=1e-4)
    for name, value in state.items():
        np.testing.assert_allclose(cached_state[name], value, rtol=1e-2, atol=1e-4, err_msg=name)


def test_a_loss_that_is_not_finite_names_its_dataset(config_of_two, tmp_path):
    config = load_config(config_of_two())
    config.folder.mkdir(parents=True)
    trainer = Trainer(build_job(config, CPU))
    heads_by_name(trainer.job.head)["noise"].weight_KD[3] = torch.nan
    with pytest.raises(ValueError, match=r"data\.train\.noise: the class centres of rank 0 is not"):
        trainer.fit()
